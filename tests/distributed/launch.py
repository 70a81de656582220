"""Start a job of `worker.py` under one of the engines and read back what it wrote."""

import functools
import importlib.util
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.distributed import worker


needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install '.[deepspeed]'"
)

ROOT = Path(__file__).parents[2]
ALONE = "1 process"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([worker.__name__])
TIME_LIMIT = 300  # seconds; a rank that hangs ends itself and says where, and the others are then ended
SHOW = "import json, os\nif os.environ['RANK'] == '0':\n    open({!r}, 'w').write(json.dumps(dict(os.environ)))\n"

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
    """Train in one process or in two; raise with the end of the output where a job fails or hangs.

    The processes are forked from a server that has imported everything, since the imports take longer than a job.
    """
    setting = {
        "engine": engine,
        "out": str(folder),
        "lora": False,
        "lengths": [8, 5, 3, 6],
        "time_limit": time_limit,
        **setting,
    }
    ranks, outputs, port = [], [], free_port()
    for rank in range(1 if engine == ALONE else 2):
        environment = {} if engine == ALONE else launched(engine) | place(rank, port)
        outputs.append(folder.with_name(f"{folder.name}_{rank}.txt"))
        ranks.append(FORKS.Process(target=worker.main_into_file, args=(setting, environment, outputs[-1])))
        ranks[-1].start()
    end = time.monotonic() + time_limit + 60
    while running := [rank.sentinel for rank in ranks if rank.exitcode is None]:
        if any(rank.exitcode for rank in ranks) or not wait(running, timeout=end - time.monotonic()):
            break
    statuses = [rank.exitcode for rank in ranks]
    for rank in ranks:  # those that wait for a failed one
        rank.kill()
        rank.join()
    if any(statuses) or None in statuses:
        text = "\n".join(output.read_text()[-8000:] for output in outputs)
        raise RuntimeError(f"{engine} {'failed' if any(statuses) else 'hung'}, statuses {statuses}:\n{text}")
    return Outcome(json.loads((folder / "log.json").read_text()), torch.load(folder / "model.pt"))


@functools.cache
def launched(engine: str) -> dict[str, str]:
    """The environment that an engine's launcher gives to its processes, but for the place of each."""
    options, port = ENGINES[engine]
    with tempfile.TemporaryDirectory() as folder:
        script, shown = Path(folder, "show.py"), Path(folder, "environment")
        script.write_text(SHOW.format(str(shown)))
        command = [sys.executable, "-m", *options, port, free_port(), str(script)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        changed = dict(json.loads(shown.read_text()).items() - os.environ.items())
    return {name: value for name, value in changed.items() if not name.startswith("TORCHELASTIC")}


def place(rank: int, port: str) -> dict[str, str]:
    """The environment of one of two processes on this machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    numbers = {name: str(number) for name, number in numbers.items()}
    return numbers | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


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
