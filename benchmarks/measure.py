"""Time and memory of cases that take turns; under which conditions; commands of the package.

Ratios are taken within a run, since seconds of a shared machine do not compare.
"""

import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from opd_trl.models.provenance import conditions as provenance
from opd_trl.models.provenance import versions


PACKAGES = ("torch", "trl", "transformers", "peft", "liger-kernel")
# Threads that wait must not spin: the machine may have other work.
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


def take_turns(cases: dict[str, Callable[[], None]], *, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every call of each case; the cases take turns. Warm them up before."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    turns = [name for _ in range(rounds) for name in cases]
    for name in track(turns, description="measuring", transient=True):
        seconds[name].append(seconds_of(cases[name], device=device))
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of some values, and how many there are."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def seconds_of(case: Callable[[], None], *, device: str) -> float:
    """Seconds of one call: CUDA events on a GPU, the clock elsewhere."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        case()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    before = time.perf_counter()
    case()
    return time.perf_counter() - before


def extra_memory(case: Callable[[], None], *, device: str) -> int:
    """MiB by which the peak of one call exceeds what lives before it.

    On a CPU what the allocator keeps counts: call it in a fresh process.
    """
    before = start_of_memory(device)
    case()
    if device == "cuda":
        torch.cuda.synchronize()
    return peak_memory(device) - before


def start_of_memory(device: str) -> int:
    """MiB that live now; the peak counts from here. Allocated on a card, resident on a CPU (Linux with glibc).

    What was freed is given back first: glibc keeps hundreds of MiB, which would hide what is allocated next.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() // 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    return resident_mib("VmRSS")


def peak_memory(device: str) -> int:
    """MiB of the largest moment since `start_of_memory`."""
    return torch.cuda.max_memory_allocated() // 2**20 if device == "cuda" else resident_mib("VmHWM")


def resident_mib(field: str) -> int:
    """A figure of /proc/self/status in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) // 1024


def conditions(device: str) -> dict[str, str]:
    """Where, when and with what a run is made."""
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    commit = provenance()["git_commit"] or "no git checkout"
    return {"date": str(date.today()), "machine": machine, **versions(PACKAGES), "commit": commit}


def cpu_name() -> str:
    """What Linux calls the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def opd_trl(*arguments: object, log: Path, seconds: float | None = None) -> None:
    """Run a command of the package, which prints into a file.

    Raises:
        RuntimeError: it fails, or takes longer than `seconds`; the log says why.
    """
    command = [sys.executable, "-m", "opd_trl.cli.main", *map(str, arguments)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        try:
            done = subprocess.run(command, env=QUIET | os.environ, stdout=file, stderr=file, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"opd-trl {arguments[0]} took too long; its log: {log}") from None
    if done.returncode:
        raise RuntimeError(f"opd-trl {arguments[0]} ended with status {done.returncode}; its log: {log}")


def write_json(path: Path, **content: Any) -> None:
    """Write an object, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nwritten: {path}")
