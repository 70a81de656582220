import json
import math

import pytest

from opd_trl import OPDConfig, OPSDConfig
from opd_trl.credentials import as_json, without_secrets
from opd_trl.reports.run_log import RunLog
from opd_trl.trainers.monitoring import differences
from tests.trainers.build import settings


def lines(folder, name="log"):
    return [json.loads(line) for line in (folder / "run_log" / f"{name}.jsonl").read_text().splitlines()]


def sessions(folder):
    return json.loads((folder / "run_log" / "run.json").read_text())["sessions"]


def test_a_line_is_readable_as_soon_as_it_is_written(tmp_path):
    run_log = RunLog(tmp_path, {"first_step": 0})
    run_log.log(3, {"loss": 0.5, "reward": None, "note": "a text"})
    (line,) = lines(tmp_path)
    assert line.pop("seconds") >= 0
    assert line == {"step": 3, "session": 0, "loss": 0.5, "reward": None}


def test_what_is_not_finite_is_null_and_named(tmp_path):
    RunLog(tmp_path, {}).log(1, {"loss": math.nan, "grad_norm": math.inf, "entropy": 1.0})
    (line,) = lines(tmp_path)
    assert line["loss"] is None
    assert line["grad_norm"] is None
    assert line["entropy"] == 1.0
    assert line["not_finite"] == ["loss", "grad_norm"]


def test_a_session_in_progress_has_no_end(tmp_path):
    run_log = RunLog(tmp_path, {"first_step": 0})
    (session,) = sessions(tmp_path)
    assert session["ended"] is None
    assert session["outcome"] is None
    assert session["started"].endswith("+00:00")
    run_log.end("finished")
    (session,) = sessions(tmp_path)
    assert session["outcome"] == "finished"
    assert session["ended"] >= session["started"]


def test_a_run_that_goes_on_adds_a_session_and_cuts_the_line_of_the_crash(tmp_path):
    RunLog(tmp_path, {"first_step": 0}).log(1, {"loss": 1.0})
    path = tmp_path / "run_log" / "log.jsonl"
    path.write_text(path.read_text() + '{"step": 2, "sess')
    second = RunLog(tmp_path, {"first_step": 1})
    second.log(2, {"loss": 0.5})
    texts = path.read_text().splitlines()
    assert [json.loads(text)["session"] for text in texts] == [0, 1]
    assert [session["first_step"] for session in sessions(tmp_path)] == [0, 1]
    assert not list((tmp_path / "run_log").glob("*.part"))


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "sessions": []}', '{"format": 1}'])
def test_a_file_that_is_no_run_log_is_left_as_it_is(tmp_path, text):
    path = tmp_path / "run_log" / "run.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is not a run log that can be continued.*Move the folder"):
        RunLog(tmp_path, {})
    assert path.read_text() == text
    assert [x.name for x in path.parent.iterdir()] == ["run.json"]


def test_a_log_that_cannot_be_written_warns_once_and_does_not_end_the_run(tmp_path, monkeypatch):
    from opd_trl.reports import run_log as module

    said = []
    monkeypatch.setattr(module.logger, "warning", said.append)
    run_log = RunLog(tmp_path, {})
    (tmp_path / "run_log" / "log.jsonl").mkdir()  # as unwritable as a full disk, for root too
    for step in range(3):
        run_log.log(step, {"loss": 1.0})
    (message,) = said
    assert "can no longer be written" in message
    assert "Training goes on" in message


def test_secrets_stay_out(tmp_path):
    config = as_json({"hub_token": "t", "teacher_model_init_kwargs": {"token": "t", "dtype": "auto"}, "api_key": "k"})
    assert config == {"teacher_model_init_kwargs": {"dtype": "auto"}}
    shown = without_secrets(["x", "--hub_token", "t", "--num_tokens", "3", "--teacher_server_url", "http://u:p@h:1"])
    assert shown == [
        "x",
        "--hub_token",
        "(left out)",
        "--num_tokens",
        "3",
        "--teacher_server_url",
        "http://(left out)@h:1",
    ]
    shown = without_secrets(['--teacher_model_init_kwargs={"token": "t"}'])
    assert shown == ["--teacher_model_init_kwargs={}"]


def test_what_differs_is_what_was_given_by_hand_and_is_not_as_published_or_by_default(tmp_path):
    args = OPSDConfig(**settings(tmp_path, method="sdft", divergence="forward_kl", loss_top_k=20, hub_token="t"))
    found = differences(args)
    assert found["divergence"] == {"value": "forward_kl", "default": "reverse_kl", "source": "method sdft"}
    assert found["max_completion_length"]["source"] == "OPSDConfig"
    assert found["method"]["value"] == "sdft"
    assert found["output_dir"]["value"].endswith("out")
    assert "teacher_model_kind" not in found  # as published
    assert "hub_token" not in found
    assert "generation_batch_size" not in found
    assert "loss_top_k" not in differences(OPDConfig(**settings(tmp_path, loss_top_k=20)))
