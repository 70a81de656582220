"""Folders that hold checkpoints, checkpoints that lack something, and Ctrl-C."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from opd_trl.manifest import MANIFEST, newest_whole
from opd_trl.scripts import common, opd
from opd_trl.trainers.monitoring import is_told_to_end
from opd_trl.trainers.resume import CheckpointError
from tests import tiny
from tests.trainers.build import opd_trainer, opsd_trainer


CALLS = 0


def interrupts_the_third_batch(completions, **kwargs):
    """A reward during which Ctrl-C comes."""
    global CALLS
    CALLS += 1
    if CALLS == 3:
        raise KeyboardInterrupt
    return [0.0] * len(completions)


@pytest.fixture
def line(here, student_path, teacher_path, write_rows):
    """The command line of a run of four steps that saves every two."""
    write_rows("rows.jsonl", count=8)
    fields = {
        "model_name_or_path": student_path,
        "teacher_model_name_or_path": teacher_path,
        "dataset_name": "rows.jsonl",
        "output_dir": "out",
        "per_device_train_batch_size": 4,
        "max_completion_length": 4,
        "max_steps": 4,
        "save_steps": 2,
        "loss_top_k": 5,
        "report_to": "none",
        "use_cpu": "true",
        "bf16": "false",
    }
    return [text for name, value in fields.items() for text in (f"--{name}", str(value))]


@pytest.fixture
def run(line, monkeypatch, capsys):
    """Run the training script in this process; return its exit status and what it wrote to stderr."""

    def run(*argv: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["opd", *line, *argv])
        try:
            common.run(opd.make_parser(prog="opd-trl opd"), opd.check_arguments, opd.main)
        except SystemExit as exit_:
            return exit_.code, capsys.readouterr().err
        except KeyboardInterrupt:
            pytest.fail("Ctrl-C ended in a traceback")
        return 0, capsys.readouterr().err

    return run


def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on_and_nothing_begins_anew_in_silence(run):
    global CALLS
    CALLS = 0
    reward = ("--reward_funcs", f"{__name__}.interrupts_the_third_batch")
    status, error = run(*reward)
    assert status == 130
    how = "To go on from out/checkpoint-2: the same command with --resume_from_checkpoint true."
    assert error.splitlines()[-1] == f"opd-trl opd: interrupted. {how}"
    assert "Traceback" not in error

    status, error = run()
    assert status == 2
    assert "output_dir='out' holds checkpoint-2 of an earlier run" in error
    assert "--resume_from_checkpoint true" in error
    assert "--overwrite_output_dir" in error
    assert not Path("out/model.safetensors").exists()

    assert run("--resume_from_checkpoint", "true")[0] == 0
    assert sorted(path.name for path in Path("out").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    both = ("--resume_from_checkpoint", "true", "--overwrite_output_dir")
    assert "Give one of the two" in run(*both)[1]

    assert run("--overwrite_output_dir", "--save_strategy", "no")[0] == 0
    assert list(Path("out").glob("checkpoint-*")) == []


def test_without_a_checkpoint_ctrl_c_says_that_the_run_begins_anew(run):
    global CALLS
    CALLS = 2
    status, error = run("--reward_funcs", f"{__name__}.interrupts_the_third_batch")
    assert status == 130
    assert error.splitlines()[-1].startswith("opd-trl opd: interrupted before the first checkpoint was saved")


@pytest.fixture
def unlimited():
    """End what `fills_the_disk` has begun."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def fills_the_disk(completions, **kwargs):
    """A reward after which no file can be as large as a model: when the third batch has come."""
    global CALLS
    CALLS += 1
    if CALLS == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return [0.0] * len(completions)


@pytest.mark.attack(
    "disk",
    "the disk is full when a checkpoint, and then the trained model, is saved",
    "one line names what could not be saved and where to go on; checkpoint and model from before are whole",
)
def test_a_full_disk_loses_no_checkpoint_and_no_model(run, unlimited):
    global CALLS
    CALLS = 0
    status, error = run("--reward_funcs", f"{__name__}.fills_the_disk")
    unlimited()
    assert status == 2
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith(
        "opd-trl opd: error: checkpoint-4 could not be saved: out/checkpoint-4: file too large. Give a file system"
    )
    assert error.splitlines()[-1].endswith(
        "To go on from out/checkpoint-2: the same command with --resume_from_checkpoint true."
    )
    assert sorted(path.name for path in Path("out").iterdir()) == ["README.md", "checkpoint-2", "run_log"]
    assert run("--resume_from_checkpoint", "true")[0] == 0
    before = Path("out/model.safetensors").read_bytes()

    CALLS = 2
    again = ("--resume_from_checkpoint", "true", "--max_steps", "5", "--save_strategy", "no")
    status, error = run(*again, "--reward_funcs", f"{__name__}.fills_the_disk")
    unlimited()
    assert status == 2
    last = error.splitlines()[-1]
    assert last.startswith("opd-trl opd: error: out: file too large.")
    assert "To go on from out/checkpoint-4" in last
    assert Path("out/model.safetensors").read_bytes() == before
    assert not Path("out/.saving").exists()


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ("optimizer.pt", "the optimizer's state"),
        ("scheduler.pt", "the learning rate's schedule"),
        ("rng_state.pth", "the random state"),
        ("model.safetensors", "the weights"),
    ],
)
def test_a_checkpoint_of_trl_says_what_it_lacks(tmp_path, student_path, teacher_path, saved, removed, said):
    (saved / removed).rename(saved.parent / removed)
    try:
        with pytest.raises(CheckpointError, match=f"no run can go on from {saved}: it lacks .*{said}"):
            opd_trainer(tmp_path, student_path, teacher_path).train(resume_from_checkpoint=str(saved))
    finally:
        (saved.parent / removed).rename(saved / removed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, student_path, teacher_path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    opd_trainer(folder, student_path, teacher_path, save_strategy="steps", save_steps=1).train()
    (folder / "out" / "checkpoint-1" / MANIFEST).unlink()
    return folder / "out" / "checkpoint-1"


def test_a_checkpoint_of_weights_alone_is_refused_by_the_command_in_one_line(run):
    assert run("--save_only_model", "true")[0] == 0
    status, error = run("--resume_from_checkpoint", "true")
    assert status == 2
    last = error.splitlines()[-1]
    assert last.startswith("opd-trl opd: error: resume_from_checkpoint is true, and out has no whole checkpoint")
    assert "checkpoint-4: it lacks the optimizer's state" in last
    assert "checkpoint-2: it lacks the optimizer's state" in last
    assert "save_only_model" in last


def test_a_moving_teacher_that_was_not_saved_is_missed(tmp_path, student_path, saved):
    trainer = opsd_trainer(tmp_path, student_path, lora=False, teacher_model_kind="ema", teacher_update_rate=0.5)
    with pytest.raises(CheckpointError, match=r"it lacks the moving teacher \(teacher/\)"):
        trainer.train(resume_from_checkpoint=str(saved))


def test_a_script_that_begins_anew_over_checkpoints_is_warned(tmp_path, student_path, teacher_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 1}
    opd_trainer(tmp_path, student_path, teacher_path, **options).train()
    assert "begins anew" not in caplog.text
    opd_trainer(tmp_path, student_path, teacher_path, **options).train()
    assert "holds checkpoint-1 of an earlier run, and this one begins anew" in caplog.text
    caplog.clear()
    opd_trainer(tmp_path, student_path, teacher_path, **options, max_steps=2).train(resume_from_checkpoint=True)
    assert "begins anew" not in caplog.text


class SigtermIn(TrainerCallback):
    """SIGTERM to this process in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # transformers notes it in a thread


@pytest.mark.attack(
    "processes",
    "SIGTERM with `enable_jit_checkpoint`",
    "the step ends and is saved; the resumed run is the same",
)
def test_a_checkpoint_at_sigterm_is_whole_and_goes_on_as_if_nothing_had_happened(tmp_path, student_path, teacher_path):
    options = {"max_steps": 4, "steps_per_generation": 2, "enable_jit_checkpoint": True, "dataset": tiny.questions(16)}
    handler = signal.getsignal(signal.SIGTERM)
    unbroken = opd_trainer(tmp_path / "unbroken", student_path, teacher_path, **options)
    unbroken.train()
    broken = opd_trainer(tmp_path, student_path, teacher_path, **options)
    broken.add_callback(SigtermIn(3))
    broken.train()
    assert (broken.state.global_step, is_told_to_end(broken), is_told_to_end(unbroken)) == (3, True, False)
    assert newest_whole(str(tmp_path / "out")).name == "checkpoint-3"
    (session,) = json.loads((tmp_path / "out" / "run_log" / "run.json").read_text())["sessions"]
    assert session["outcome"] == "stopped by SIGTERM"
    resumed = opd_trainer(tmp_path, student_path, teacher_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert not is_told_to_end(resumed)
    weights = unbroken.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in resumed.model.state_dict().items())
    assert signal.getsignal(signal.SIGTERM) == handler


WAITS = """
import sys, time
try:
    open("started", "w").close()
    time.sleep(60)
except KeyboardInterrupt:
    print("the child says how to go on", file=sys.stderr)
    sys.exit(130)
"""
LAUNCHES = "import sys; from opd_trl.scripts.launching import launch; sys.exit(launch('waits', [], []))"


def test_the_launcher_leaves_ctrl_c_to_the_run_and_returns_its_status(here):
    (here / "waits.py").write_text(WAITS)
    paths = [str(Path(tiny.__file__).parents[1]), str(here)]
    command = [sys.executable, "-c", LAUNCHES]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as launched:
        for _ in range(2400):
            if Path("started").exists():
                break
            time.sleep(0.1)
        os.killpg(launched.pid, signal.SIGINT)
        error = launched.communicate(timeout=120)[1]
    assert launched.returncode == 130
    assert error.strip().splitlines()[-1] == "the child says how to go on"
    assert "Traceback" not in error
