"""The real thing in real processes: accelerate launches, a tiny model trains, an adapter is saved."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import tiny


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    with start(*command, cwd=cwd) as process:
        out, error = process.communicate(timeout=300)
        return subprocess.CompletedProcess(command, process.returncode, out, error)


def start(*command: str, cwd: Path) -> subprocess.Popen:
    # Python's own folder first: accelerate launches `python`, which must be this environment's.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)


def write_questions(path: Path, **columns) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny.questions(8, **columns)))


COMMON = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "max_completion_length": 6,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
}


def test_opsd_with_a_recipe_and_a_flag_trains_and_saves_an_adapter(tmp_path, student_path):
    write_questions(tmp_path / "questions.jsonl")
    recipe = COMMON | {
        "model_name_or_path": student_path,
        "dataset_name": "questions.jsonl",
        "privileged_context": "Answer with b.",
        "use_peft": True,
        "lora_target_modules": "all-linear",
        "output_dir": "out",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "opd_trl.cli.main", "opsd", "--config", "recipe.yaml"]
    result = run(*command, "--loss_top_k", "7", "--num_processes", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert re.search(
        r"step 1/\d  divergence \d\.\d+  entropy .*  tokens .*  cut off .*%  lr .*  s/step", result.stdout
    )
    for noise in ("FutureWarning", "were not passed to `accelerate launch`", "Setting accelerator to CPU"):
        assert noise not in result.stdout + result.stderr
    assert "Training completed. The LoRA adapter is in out." in result.stdout
    assert "opd-trl report out" in result.stdout
    assert "opd-trl chat out" in result.stdout


def test_opd_runs_under_a_plain_accelerate_launch(tmp_path, student_path, teacher_path):
    write_questions(tmp_path / "questions.jsonl")
    options = COMMON | {
        "model_name_or_path": student_path,
        "teacher_model_name_or_path": teacher_path,
        "dataset_name": "questions.jsonl",
        "output_dir": "out",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    result = run(*launch, "-m", "opd_trl.scripts.opd", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "README.md").read_text().count("2605.11182")  # the model card names the method


@pytest.mark.attack(
    "processes",
    "a second training in one output_dir; SIGTERM to two processes with `enable_jit_checkpoint`",
    "refused by a line; a whole checkpoint, status 143 and the line that goes on",
)
def test_one_training_owns_its_folder_and_a_supervisor_ends_it_with_a_checkpoint(tmp_path, student_path, teacher_path):
    write_questions(tmp_path / "questions.jsonl")
    options = COMMON | {
        "model_name_or_path": student_path,
        "teacher_model_name_or_path": teacher_path,
        "dataset_name": "questions.jsonl",
        "output_dir": "out",
        "max_steps": 100_000,
        "per_device_train_batch_size": 2,
        "enable_jit_checkpoint": True,
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "opd_trl.cli.main", "opd", *flags, "--multi_gpu", "--num_processes", "2"]
    with start(*command, "--main_process_port", "29581", cwd=tmp_path) as first:
        end = time.monotonic() + 300
        while not (tmp_path / "out" / "run_log" / "log.jsonl").exists():
            assert first.poll() is None, first.communicate()[1][-3000:]
            assert time.monotonic() < end
            time.sleep(0.1)
        second = run(*command, cwd=tmp_path)
        first.terminate()
        error = first.communicate(timeout=300)[1]
    assert second.returncode == 2
    assert f"output_dir out is in use: process {first.pid} on " in second.stderr
    assert first.returncode == 143, error[-3000:]
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert {"trainer_state.json", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"} <= {
        path.name for path in checkpoint.iterdir()
    }
    assert f"opd-trl opd: interrupted. To go on from out/{checkpoint.name}: the same command with" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "_in_use.lock").exists()
