"""The recipe for pictures trains a tiny LLaVA on a file of pictures, and its pre-flight scores them."""

import json

import pytest
from datasets import Dataset, Image

from opd_trl.cli.main import main
from opd_trl.scripts import opsd
from tests import tiny
from tests.trainers import vision


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """The recipe on a tiny LLaVA and four pictures, with the settings of a smoke run."""
    monkeypatch.chdir(tmp_path)
    processor = vision.build_processor()
    vision.build_vlm(processor).save_pretrained("llava")
    processor.save_pretrained("llava")
    for place, picture in enumerate(vision.pictures(8)):
        picture.save(f"{place}.png")
    prompts = [[{"role": "user", "content": f"what is in number {place}?"}] for place in range(8)]
    rows = {"prompt": prompts, "image": [f"{place}.png" for place in range(8)]}
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet("pictures.parquet")
    given = {"model_name_or_path": "llava", "dataset_name": "pictures.parquet", "monitor": "false"}
    given |= {"max_completion_length": "4", "disable_dropout": "true"}
    configs = ["--config", "vision/opsd_vl_2b", "--config", "smoke/opsd"]
    return configs + [part for name, value in given.items() for part in (f"--{name}", value)]


def test_it_trains_on_a_file_of_pictures(flags, tmp_path, make_parser):
    parsed = make_parser("opsd").parse_args_and_config(flags)
    opsd.check_arguments(*parsed)
    opsd.main(*parsed)
    assert (tmp_path / "runs/smoke/model.safetensors").exists()


def test_its_preflight_scores_the_pictures_and_says_what_it_leaves_out(flags, tmp_path):
    main(["preflight", *flags, "--prompts", "4", "--json", "card.json"])
    card = json.loads((tmp_path / "card.json").read_text())
    found = {finding["name"]: finding for finding in card["findings"]}
    left_out = {name for name, finding in found.items() if finding["verdict"] == "not run"}
    assert left_out == {"answers"}
    assert "these rows have images" in found["answers"]["sentence"]


def test_a_teacher_that_reads_text_alone_is_one_line(flags, capsys):
    tiny.save("text", vocab_size=len(vision.build_processor().tokenizer))
    flags = [x for x in flags if x not in ("--config", "vision/opsd_vl_2b", "smoke/opsd")]
    flags += ["--config", "smoke/opd", "--teacher_model_name_or_path", "text"]
    assert main(["preflight", *flags, "--prompts", "4"]) == 1
    assert "the teacher is a qwen3 model, which reads text alone" in " ".join(capsys.readouterr().out.split())
