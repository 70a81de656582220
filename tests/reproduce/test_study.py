"""A study of a few steps, run by its command: real models and trainers, in processes of their own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from opd_trl import OPDConfig
from opd_trl.cli import reproduce as command
from opd_trl.locks import writing
from opd_trl.reproduce.arms import first_warnings
from opd_trl.reproduce.confusion import WORDS
from opd_trl.reproduce.rates import chosen, parted
from opd_trl.reproduce.settings import at_rate, read_settings
from opd_trl.reproduce.study import RESULTS, all_jobs, key_of, matching, read_lines
from opd_trl.scripts.recipe_files import find_recipe


ARMS = ["plain_5", "own_answer", "geometric", "sft", "penalty"]


def tiny_settings(path: Path, arms: list[str] = ARMS) -> Path:
    """The study's own settings, three steps long."""
    content = yaml.safe_load(find_recipe("reproduce/mechanisms").read_text())
    content.pop("sections")
    content["rates"] = {"values": [1e-3, 4e-3], "seeds": [7]}
    content["trial"] = {"steps": [1, 2], "prompts": 4}
    for name in ("own", "other", "adapted", "stabilized"):
        content["models"][name] |= {"max_steps": 3, "per_device_train_batch_size": 8, "warmup_steps": 0}
    content["models"]["own"]["snapshots"] = {"weak": 1, "strong": 2}
    content["training"] |= {"max_steps": 3, "per_device_train_batch_size": 8, "max_completion_length": 8}
    content["evaluation"] = {"samples": 1, "max_new_tokens": 4}
    content["preflight"] = {"prompts": 4, "contexts": 2}
    content["only"] = arms
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study: its folder and the arguments of its command."""
    home = tmp_path_factory.mktemp("study")
    settings = tiny_settings(home / "settings.yaml")
    argv = ["mechanisms", "--settings", str(settings), "--seeds", "1", "--output", str(home / "out"), "--jobs", "2"]
    assert command.main(argv) == 0
    return home / "out", argv


def arm_lines(home: Path) -> dict[str, dict]:
    return {parted(line["name"])[0]: line["result"] for line in read_lines(home) if line["kind"] == "arm"}


def test_every_arm_leaves_a_line_with_what_it_is_judged_by(study):
    home, _ = study
    lines = arm_lines(home)
    assert set(lines) == set(ARMS)
    for name in ("plain_5", "own_answer", "sft", "penalty"):
        assert {"accuracy", "greedy", "length", "cut_off", "repetition"} <= set(lines[name]["after"])
    assert "train_accuracy" in lines["own_answer"]["after"]
    assert {"to_geometric", "to_arithmetic", "stationary_mass"} <= set(lines["geometric"]["after"])
    assert lines["plain_5"]["curves"]["step"] == [1, 2, 3]
    assert (lines["plain_5"]["warnings"], lines["sft"]["warnings"]) == ({}, None)


def test_every_arm_is_looked_at_but_the_one_without_a_teacher(study):
    home, _ = study
    said = {parted(line["name"])[0]: line["result"] for line in read_lines(home) if line["kind"] == "forecast"}
    assert set(said) == set(ARMS) - {"sft"}
    assert said["plain_5"]["verdict"] == "stop"
    assert {"section", "name", "verdict", "figure", "value"} == set(said["plain_5"]["findings"][0])


def test_students_and_teachers_are_measured_before(study):
    home, _ = study
    references = {(x["model"], x["prompts"], x["context"]) for x in read_lines(home) if x["kind"] == "reference"}
    solve, quick = ("weak", "solve", None), ("own", "quick", None)
    assert {x["seed"] for x in read_lines(home) if x["kind"] == "reference"} == {0, 7}
    assert references == {solve, ("own", "solve", None), quick, ("own", "quick", "answer")}


def test_there_is_a_report_with_pictures_and_a_run_log_of_each_arm(study):
    home, _ = study
    assert "Biased TopK collapses" in (home / "report.md").read_text()
    assert (home / "biased_topk.png").stat().st_size > 10_000
    assert not (home / "mode_not_covered.png").exists()
    (log,) = (home / "0" / "runs").glob("plain_5@*/run_log/log.jsonl")
    assert log.exists()


def test_each_rate_is_tried_on_other_seeds_and_the_best_one_is_reported(study):
    home, _ = study
    tried = {(x["name"], x["seed"]) for x in read_lines(home) if x["kind"] == "rate"}
    assert tried == {(f"{arm}@{rate}", 7) for arm in ARMS if arm != "geometric" for rate in ("0.001", "0.004")}
    settings = read_settings(home.parent / "settings.yaml")
    best = chosen(settings, read_lines(home))
    reported = dict(parted(x["name"]) for x in read_lines(home) if x["kind"] == "arm")
    assert reported == best | {"geometric": None}


def test_the_words_of_the_trials_are_written_down_while_a_run_goes_on(study):
    home, _ = study
    for name, result in arm_lines(home).items():
        assert ("foretold" in result) == (name not in ("geometric", "sft"))
    told = arm_lines(home)["plain_5"]["foretold"]
    (file,) = (home / "0" / "runs").glob("plain_5@*/forecast.json")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == told["sha256"]
    assert set(told["words"]) == {"1", "2"}
    assert all(word in WORDS for word in told["words"].values())
    assert file.stat().st_mtime < (home / "results.jsonl").stat().st_mtime


def test_called_again_it_runs_what_is_missing_alone(study, tmp_path, capsys):
    home, argv = study
    again = tmp_path / "again"
    shutil.copytree(home, again)
    lines = (again / RESULTS).read_text().splitlines(keepends=True)
    arms = [line for line in lines if '"kind": "arm"' in line]
    # As a kill leaves it: one arm was not begun, and the line of another is half written.
    kept = [line for line in lines if line not in arms[-2:]]
    (again / RESULTS).write_text("".join(kept) + arms[-1][:40])
    assert command.main([*argv[:-4], "--output", str(again), "--jobs", "1"]) == 0
    assert f"{len(lines) - 2} of {len(lines)} steps are done already" in capsys.readouterr().out
    # Nothing but time differs: the seeds decide.
    for name, line in arm_lines(again).items():
        assert without_times(line) == without_times(arm_lines(home)[name])


def without_times(line: dict) -> dict:
    told = {name: value for name, value in line.get("foretold", {}).items() if name not in ("written", "sha256")}
    return line | {"seconds": 0, "foretold": told}


@pytest.mark.attack("processes", "SIGKILL to `opd-trl reproduce`", "its workers end, and its lock is free")
def test_a_killed_study_takes_its_workers_along(tmp_path):
    settings = tiny_settings(tmp_path / "settings.yaml", ["plain_5"])
    argv = ["reproduce", "mechanisms", "--settings", str(settings), "--seeds", "1", "--jobs", "1", "--output"]
    command = [sys.executable, "-m", "opd_trl.cli.main", *argv, str(tmp_path / "out")]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}) as study:
        end = time.monotonic() + 200
        while not (tmp_path / "out" / "0" / "logs").is_dir():  # a worker makes it
            assert study.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        workers = psutil.Process(study.pid).children(recursive=True)
        study.kill()
    assert len(workers) >= 2  # and the guardian
    assert psutil.wait_procs(workers, timeout=120)[1] == []
    with writing(tmp_path / "out"):
        pass


def test_results_of_other_settings_are_not_mixed_in(study, tmp_path):
    home, _ = study
    longer = yaml.safe_load(tiny_settings(tmp_path / "longer.yaml").read_text())
    longer["training"]["max_steps"] = 4
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(longer))
    settings = read_settings(tmp_path / "longer.yaml")
    kinds = {line["kind"] for line in matching(read_lines(home), all_jobs(settings, [0], ARMS))}
    assert kinds == {"model"}


def test_jobs_are_every_model_reference_and_arm_once_per_seed():
    settings = at_rate(read_settings(find_recipe("reproduce/mechanisms"), section="teachers"), 1e-3)
    jobs = all_jobs(settings, range(2), ["other_teacher_after_sft", "other_teacher"])
    assert [job.name for job in jobs if job.kind == "model" and job.seed == 1] == ["own", "other", "stabilized"]
    assert len({job.key for job in jobs}) == len(jobs)


def test_an_arm_that_fails_is_named_and_the_others_go_on(tmp_path, capsys):
    settings = tiny_settings(tmp_path / "settings.yaml", ["full", "geometric"])
    content = yaml.safe_load(settings.read_text())
    content["arms"]["full"]["fields"] = {"loss_support": "nowhere"}
    settings.write_text(yaml.safe_dump(content))
    argv = ["mechanisms", "--settings", str(settings), "--seeds", "1", "--output", str(tmp_path / "out")]
    assert command.main([*argv, "--jobs", "1"]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "rate full@0.001, seed 7: ValueError: loss_support" in output
    assert "The same command tries them again" in output
    assert set(arm_lines(tmp_path / "out")) == {"geometric"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "biased"], "--only biased: no such claim or arm"),
        (["--seeds", "0"], "--seeds must be 1 to 10, got 0"),
        (["--seeds", "11"], "--seeds must be 1 to 10, got 11"),
        (["--jobs", "0"], "--jobs must be 1 to 64, got 0"),
        (["--table"], "holds no result of these arms and settings yet"),
        (["--settings", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert command.main(["mechanisms", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("opd-trl reproduce: error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_lines_are_found_by_kind_name_seed_and_settings(study):
    home, _ = study
    lines = read_lines(home)
    assert len({key_of(line) for line in lines}) == len(lines)
    assert all(json.loads(json.dumps(line)) == line for line in lines)


def test_the_rules_of_the_monitor_that_fire_are_kept_with_their_step(tmp_path):
    falls = [0.6] * 5 + [0.5, 0.4, 0.3, 0.2, 0.1]
    log = [{"step": step, "support/overlap": overlap} for step, overlap in enumerate(falls, 1)]
    trainer = SimpleNamespace(
        args=OPDConfig(str(tmp_path), use_cpu=True, bf16=False), state=SimpleNamespace(log_history=log)
    )
    assert first_warnings(trainer) == {"overlap_falls": 10}
