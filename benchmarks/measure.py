"""Time and memory of cases that take turns, and the lines and tables of what was measured.

Ratios are taken within a run, since seconds of a shared machine do not compare.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from opd_trl.durable import atomically


def alternate(cases: dict[str, Callable[[], None]], *, rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each case, of `take_turns`."""
    return {
        name: statistics.median(values) for name, values in take_turns(cases, rounds=rounds, device=device).items()
    }


def take_turns(cases: dict[str, Callable[[], None]], *, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every call of each case; the cases take turns, the first turn warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    turns = [(turn, name) for turn in range(rounds + 1) for name in cases]
    for turn, name in track(turns, description="measuring", transient=True):
        elapsed = seconds_of(cases[name], device=device)
        if turn:
            seconds[name].append(elapsed)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of some seconds, and how many there are."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": len(values),
    }


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

    On a CPU: of the resident set (Linux), so call it in a fresh process; what the allocator keeps counts. On a GPU: of
    the allocated bytes.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) // 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident_mib("VmRSS")
    case()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> int:
    """A figure of /proc/self/status in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) // 1024


def in_fresh_process(script: str, *arguments: str) -> str:
    """Last line that a Python script prints.

    Raises:
        RuntimeError: it fails; with the end of its errors.
    """
    result = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{result.stderr[-2000:]}")
    return result.stdout.strip().splitlines()[-1]


def conditions(device: str) -> dict[str, str]:
    """Where and with what a run was made."""
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    return {"date": str(date.today()), "machine": machine} | {name: installed(name) for name in ("torch", "trl")}


def read_lines(path: Path, key: Callable[[dict[str, Any]], Any] = dict) -> list[dict[str, Any]]:
    """The lines of a JSONL file, none where there is no file; `key` says what a line is about.

    Raises:
        ValueError: a line is no JSON object, or `key` finds nothing in it.
    """
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], start=1):
        try:
            lines.append(json.loads(text))
            key(lines[-1])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no line of a case ({error}). Remove it.") from error
    return lines


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file, whole or not at all."""
    with atomically(path) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def conditions_of(lines: list[dict[str, Any]], names: Iterable[str]) -> str:
    """The sentence that says under which conditions lines came about: every value that occurs, commands as code."""
    found = []
    for name in names:
        values = sorted({str(line[name]) for line in lines if line.get(name)})
        shown = [f"`{value}`" for value in values] if name == "command" else values
        found += [f"{name} {' and '.join(shown)}"] if values else []
    return f"Conditions: {'; '.join(found)}."


def marks_of(script: str) -> tuple[str, str]:
    """The lines that begin and end what `benchmarks/<script>.py` writes.

    >>> marks_of("internalise")
    ('<!-- internalise: begin, written by benchmarks/internalise.py -->', '<!-- internalise: end -->')
    """
    return f"<!-- {script}: begin, written by benchmarks/{script}.py -->", f"<!-- {script}: end -->"


def write_between_marks(page: Path, text: str, script: str) -> None:
    """Replace what stands between the marks of a script on a page.

    Raises:
        ValueError: the page is missing, or has not each mark once, in their order.
    """
    content, (begin, end) = page.read_text(encoding="utf-8") if page.is_file() else "", marks_of(script)
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{page} must hold the lines {begin} and {end}, once and in this order. Put them there.")
    head, rest = content.split(begin)
    with atomically(page) as file:
        file.write(f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def commit() -> str:
    """The commit of this checkout, with a mark where tracked files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "no git"
    return result.stdout.strip() or "no git checkout"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A Markdown table, as it stands in docs/performance.md."""
    columns = list(columns)
    print(f"\n{title}\n")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print("| " + " | ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in row) + " |")


def write_json(path: Path, **content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nwritten: {path}")
