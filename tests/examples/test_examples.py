"""Every example runs as a user runs it, on the tiny model."""

import re
import runpy
import sys
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.parametrize("name", ["opd.py", "opsd_system_prompt.py", "from_grpo.py"])
def test_an_example_trains_and_saves_its_model(monkeypatch, tmp_path, student_path, teacher_path, name):
    models = {
        "opd.py": ["--student", student_path, "--teacher", teacher_path],
        "opsd_system_prompt.py": ["--model", student_path],
        "from_grpo.py": ["--model", student_path, "--teacher", teacher_path],
    }
    run(monkeypatch, name, *models[name], "--output", str(tmp_path / "out"), "--max-steps", "2")
    assert list((tmp_path / "out").glob("*model.safetensors"))


def test_the_tools_example_goes_from_sft_to_what_is_solved(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "opsd_tools.py", "--output", str(tmp_path / "out"), "--sft-steps", "2", "--max-steps", "1")
    shown = re.findall(r"solved (?:before|after) (\d\.\d+)", capsys.readouterr().out)
    assert len(shown) == 2
    assert (tmp_path / "out" / "opsd" / "model.safetensors").is_file()


def test_the_loss_example_shows_that_the_plain_form_unlearns_a_perfect_student(monkeypatch, capsys):
    run(monkeypatch, "loss_only.py")
    plain, stopped = (float(x) for x in re.findall(r"reverse KL to the teacher ([\d.]+)", capsys.readouterr().out))
    assert plain > 0.3
    assert stopped == 0.0


def test_every_example_is_short_and_is_run_here():
    files = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert files.keys() == {"opd.py", "opsd_system_prompt.py", "opsd_tools.py", "from_grpo.py", "loss_only.py"}
    assert max(files.values()) < 80
