"""Start a job of `worker.py` under one of the engines and read back what it wrote."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch


needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install '.[deepspeed]'"
)

WORKER = Path(__file__).with_name("worker.py")
ROOT = WORKER.parents[2]
TIME_LIMIT = 300  # seconds; a rank that hangs ends itself and says where, and its launcher then ends the others

ZERO = ["--use_deepspeed", "--zero3_init_flag", "true", "--zero3_save_16bit_model", "true", "--zero_stage"]
# Engine -> the launcher and its options, before the port and the script.
ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2"]
FSDP2 = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
FSDP2 += ["--fsdp_reshard_after_forward", "true", "--fsdp_state_dict_type", "FULL_STATE_DICT"]
ENGINES = {
    "DDP": (["torch.distributed.run", "--nproc_per_node", "2"], "--master_port"),
    **{f"ZeRO-{stage}": ([*ACCELERATE, *ZERO, str(stage)], "--main_process_port") for stage in (1, 2, 3)},
    "FSDP2": ([*ACCELERATE, *FSDP2], "--main_process_port"),
}


class Outcome(NamedTuple):
    """Per step: loss, gradient norm and figures; after the last: the trained parameters."""

    log: list[dict[str, float]]
    parameters: dict[str, torch.Tensor]


def run_job(engine: str, folder: Path, *, time_limit: int = TIME_LIMIT, **setting: Any) -> Outcome:
    """Train in one process or in two; raise with the end of the output where a job fails or hangs."""
    setting = {"out": str(folder), "lora": False, "lengths": [8, 5, 3, 6], "time_limit": time_limit, **setting}
    launcher = []
    if engine != "1 process":
        options, port = ENGINES[engine]
        launcher = ["-m", *options, port, free_port()]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    try:
        result = subprocess.run(
            [sys.executable, *launcher, str(WORKER), json.dumps(setting)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=time_limit + 60,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{engine} hung for {time_limit + 60} s:\n{(error.stdout or b'')[-3000:]}") from error
    if result.returncode:
        raise RuntimeError(f"{engine} failed:\n{result.stdout[-8000:]}")
    return Outcome(json.loads((folder / "log.json").read_text()), torch.load(folder / "model.pt"))


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def deviation(outcome: Outcome, reference: Outcome) -> dict[str, float]:
    """Largest difference of loss, gradient norm and parameters, relative to the reference where it exceeds 1."""
    assert outcome.parameters.keys() == reference.parameters.keys()
    steps = list(zip(outcome.log, reference.log, strict=True))
    found = {
        name: max(abs(a[name] - b[name]) / max(1.0, abs(b[name])) for a, b in steps) for name in ("loss", "grad_norm")
    }
    differences = [(outcome.parameters[k] - x).abs().max().item() for k, x in reference.parameters.items()]
    return found | {"parameters": max(differences)}
