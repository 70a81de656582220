"""Read `run_log/` of a training run: finished, in progress or crashed."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import open as open_with_bar

from ..foreign import parse_json
from .run_log import FOLDER, FORMAT
from .runs import Column, Run, merged, surviving


LONG = 20 * 2**20  # bytes, about 3 s


class RunLogError(ValueError):
    """A folder holds no run log, or one that cannot be read."""


@dataclass
class Unread:
    """The lines of a run log that could not be read, by file.

    Args:
        broken: file -> lines inside it that are not a JSON object with a step: two processes wrote, or the disk was
            full.
        half_written: files whose last line has no end, as in a run that is writing it or was killed.
    """

    broken: dict[str, int] = field(default_factory=dict)
    half_written: list[str] = field(default_factory=list)


@dataclass
class Log:
    """The lines of `log.jsonl` by metric.

    Args:
        values: metric -> its finite values.
        not_finite: metric -> where it was NaN or infinite.
        ends: how far each session has come: (last step, seconds from its start to its last line).
    """

    values: dict[str, Column] = field(default_factory=dict)
    not_finite: dict[str, Column] = field(default_factory=dict)
    ends: dict[int, tuple[int, float]] = field(default_factory=dict)

    def keep(self, line: dict[str, Any]) -> None:
        """Add a line; what is not a number is passed over."""
        step, session = line.pop("step"), line.pop("session")
        seconds = line.pop("seconds", None)
        before = self.ends.get(session, (0, 0.0))
        self.ends[session] = (max(step, before[0]), max(seconds if is_number(seconds) else 0.0, before[1]))
        names = line.pop("not_finite", None)
        for name in names if isinstance(names, list) else []:
            self.not_finite.setdefault(str(name), Column()).append(step, session)
        for name, value in line.items():
            if is_number(value):
                if name not in self.values:
                    self.values[name] = Column()
                self.values[name].append(step, session, value)


def read_run(folder: Path) -> Run:
    """Read the run log of a run: `folder` is its `output_dir`, or the `run_log` inside it.

    Where a session was resumed, its steps replace those that earlier sessions logged after the step that it started
    from. Raises RunLogError where there is no such folder, no run log in it, or one of a newer format.
    """
    home = find_log(folder)
    header, unread = read_header(home / "run.json"), Unread()
    log = Log()
    count = read_lines(home / "log.jsonl", unread, log.keep)
    samples: list[dict[str, Any]] = []
    warnings: list[dict[str, Any]] = []
    read_lines(home / "samples.jsonl", unread, samples.append)
    read_lines(home / "warnings.jsonl", unread, warnings.append)
    sessions = header["sessions"]
    limits = surviving(sessions, set(log.ends))
    return Run(
        folder=home.parent,
        sessions=sessions,
        series={name: found for name, column in log.values.items() if len((found := merged(column, limits)).steps)},
        not_finite={
            name: steps for name, at in log.not_finite.items() if (steps := merged(at, limits).steps.tolist())
        },
        ends=log.ends,
        samples=[line for line in samples if survives(line, limits)],
        warnings=[{**line, "superseded": not survives(line, limits)} for line in warnings],
        unread=unread,
        lines=count,
    )


def find_log(folder: Path) -> Path:
    """Return the folder of the run log; raises RunLogError where there is none."""
    if not folder.exists():
        raise RunLogError(f"{folder} does not exist (looked in {Path.cwd()}). Give the output_dir of a training run.")
    if not folder.is_dir():
        raise RunLogError(f"{folder} is a file. Give the output_dir of a training run, a folder with {FOLDER}/ in it.")
    folder = folder.resolve()
    if folder.name == FOLDER and (folder / "run.json").is_file():
        return folder
    if (folder / FOLDER / "run.json").is_file():
        return folder / FOLDER
    found = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    listed = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    runs = sorted(path.parent.parent for path in folder.glob(f"*/{FOLDER}/run.json"))
    if runs:
        advice = "These are runs: " + " ".join(map(str, runs[:8])) + "."
    else:
        advice = "Train with `monitor: true`, which is the default: the run log is written into the output_dir."
    raise RunLogError(f"{folder} holds no {FOLDER}/run.json. Found: {listed or 'nothing'}. {advice}")


def read_header(path: Path) -> dict[str, Any]:
    """Read `run.json`; raises RunLogError unless it is the header of a run log, in a format known here."""
    try:
        header = parse_json(path.read_bytes())
        version, sessions = header["format"], header["sessions"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunLogError(
            f"{path} is not the header of a run log ({error!r}). Expected an object with `format` and `sessions`, as "
            "the trainers of opd_trl write it."
        ) from error
    if not isinstance(version, int) or version > FORMAT:
        raise RunLogError(
            f"{path} has format {version!r}; this opd-trl reads formats up to {FORMAT}. Report with the version of "
            "opd_trl that trained the run, or a later one."
        )
    if not isinstance(sessions, list) or not sessions or not all(isinstance(item, dict) for item in sessions):
        raise RunLogError(f"{path} lists no sessions. Expected one for each start of the training.")
    for number, session in enumerate(sessions):
        first = session.get("first_step") or 0
        if not is_step(first):
            raise RunLogError(f"{path}, session {number}: first_step must be a whole number, got {str(first)[:50]!r}.")
    return header


def read_lines(path: Path, unread: Unread, keep: Callable[[dict[str, Any]], None]) -> int:
    """Hand each line of a JSONL file to `keep`, count those that cannot be read, and return how many were.

    A missing file is an empty one. A last line without an end is left out: the next report reads it whole.
    """
    count = 0
    if not path.is_file():
        return count
    with opened(path) as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                unread.half_written.append(path.name)
                break
            line = as_line(raw)
            if line is None:
                unread.broken[path.name] = unread.broken.get(path.name, 0) + bool(raw.strip())
                continue
            keep(line)
            count += 1
    if not unread.broken.get(path.name, 1):
        del unread.broken[path.name]
    return count


def opened(path: Path) -> BinaryIO:
    """Open a file to be read, with a progress bar on a terminal where it takes seconds."""
    if path.stat().st_size < LONG:
        return path.open("rb")
    console = Console(stderr=True)
    bar = {"console": console, "transient": True, "disable": not console.is_terminal}
    return open_with_bar(path, "rb", description=f"Reading {path.name}", **bar)


def as_line(raw: bytes) -> dict[str, Any] | None:
    """Return a line as an object with a whole step and session, or None.

    >>> as_line(b'{"step": 3, "loss": 0.5}\\n')
    {'step': 3, 'loss': 0.5, 'session': 0}
    >>> as_line(b'{"step": 3, "lo') is None
    True
    """
    try:
        line = parse_json(raw)
    except ValueError:
        return None
    if not isinstance(line, dict):
        return None
    line.setdefault("session", 0)
    return line if is_step(line.get("step")) and is_step(line["session"]) else None


def is_step(value: Any) -> bool:
    """Is a value of JSON a whole number from 0 on that a step or a session can be?"""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def is_number(value: Any) -> bool:
    """Is a value of JSON a finite number?

    >>> is_number(0.5), is_number(True), is_number(None), is_number(float("nan"))
    (True, False, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def survives(line: dict[str, Any], limits: dict[int, float]) -> bool:
    """Does a line count still: was its step not run again by a later session?"""
    return line["step"] <= limits.get(line["session"], math.inf)
