"""`opd-trl preflight` and `verify-loss` with a teacher behind HTTP."""

import json

import pytest

from opd_trl.cli.main import main


@pytest.fixture
def check(tmp_path, monkeypatch, student_path):
    """Run a check of 4 prompts against a teacher; return its status and its JSON."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{'a' * (i + 1)} plus {i}?"} for i in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(command: str, url: str):
        flags = {
            "model_name_or_path": student_path,
            "teacher_server_url": url,
            "dataset_name": "train.jsonl",
            "output_dir": "out",
            "per_device_train_batch_size": 4,
            "max_completion_length": 8,
            "loss_support": "teacher",
            "loss_top_k": 5,
            "prompts": 4,
            "json": "figures.json",
        }
        status = main([command, *(text for name, value in flags.items() for text in (f"--{name}", str(value)))])
        file = tmp_path / "figures.json"
        return status, json.loads(file.read_text()) if file.exists() else None

    return run


def test_a_teacher_that_sends_hidden_states_is_checked_whole_but_for_its_own_answers(check, ours):
    _, figures = check("preflight", ours)
    missing = [finding["name"] for finding in figures["findings"] if finding["verdict"] == "not run"]
    assert missing == ["answers"]
    assert figures["tokens"]["mean"]["reverse_kl"] > 0
    assert figures["loss"]["exact_loss"] > 0


def test_of_a_teacher_that_sends_top_k_alone_templates_and_cost_are_checked(check, plain, capsys):
    _, figures = check("preflight", plain)
    missing = {
        finding["name"]: finding["sentence"] for finding in figures["findings"] if finding["verdict"] == "not run"
    }
    assert missing.keys() == {"prefixes", "answers", "loss"}
    assert "this check reads the whole distribution" in missing["loss"]
    assert figures["cost"]["total"] > 0
    status, _ = check("verify-loss", plain)
    assert status == 2
    assert "name a local copy beside teacher_server_url" in capsys.readouterr().err
