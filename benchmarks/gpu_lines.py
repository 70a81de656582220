"""The lines of `gpu.py`: one JSON object for every measured case, on disk as soon as it is measured."""

import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import conditions, installed, read_lines, write_lines


Line = dict[str, Any]
STAGES = ("loss", "steps", "memory", "real")
# The case that ratios are taken to.
TRL = "TRL kernel"
# In the order of a step. `loss` is compute_loss without both forwards, `rest` what is none of the others.
PHASES = ("generation", "teacher", "student", "loss", "backward", "optimizer", "rest")
RESULTS = Path(__file__).parent / "results"
# After its deadline a case that is being measured has so long to end.
GRACE_SECONDS = 25


def file_of(folder: Path, stage: str) -> Path:
    return folder / f"gpu_{stage}.jsonl"


def read(folder: Path, stage: str) -> list[Line]:
    """The lines of a stage; none where there is no file."""
    return read_lines(file_of(folder, stage), key_of)


def key_of(line: Line) -> tuple[str, str, str]:
    """What there is one line of: a case at a size on a machine."""
    return line["size"], line["machine"], line["case"]


@dataclass
class Results:
    """The lines of a stage at a size on this machine.

    Attributes:
        folder: of the files.
        stage: one of `STAGES`.
        where: size, machine, date, versions, command: what every line carries.
    """

    folder: Path
    stage: str
    where: dict[str, str]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def lines(self) -> list[Line]:
        return [line for line in read(self.folder, self.stage) if key_of(line)[:2] == self._here]

    def done(self) -> set[str]:
        """Cases that have a line."""
        return {line["case"] for line in self.lines()}

    def add(self, case: str, **content: Any) -> None:
        """Append a line; one of the same case is replaced."""
        line = {"case": case, **content, **self.where}
        with self._lock:
            kept = [other for other in read(self.folder, self.stage) if key_of(other) != key_of(line)]
            write_lines(file_of(self.folder, self.stage), [*kept, line])

    def clear(self) -> None:
        """Forget the lines of this size and machine."""
        with self._lock:
            kept = [line for line in read(self.folder, self.stage) if key_of(line)[:2] != self._here]
            write_lines(file_of(self.folder, self.stage), kept)

    @property
    def _here(self) -> tuple[str, str]:
        return self.where["size"], self.where["machine"]


def where(send: Callable[[dict[str, str]], None], size: str, device: str, arguments: list[str]) -> None:
    """Size, machine, date, versions and command of this run; in a child, since asking a card takes memory of it."""
    versions = {name: installed(name) for name in ("transformers", "liger-kernel")}
    command = shlex.join(["python", "benchmarks/gpu.py", *arguments])
    send({"size": size, **conditions(device), **versions, "command": command})


@dataclass(frozen=True)
class Deadline:
    """The moment (`time.time()`) after which nothing more is begun."""

    at: float

    @classmethod
    def after(cls, minutes: float) -> "Deadline":
        return cls(time.time() + 60 * minutes)

    def leaves(self, seconds: float) -> bool:
        """Is there so much time left?"""
        return self.left >= seconds

    @property
    def left(self) -> float:
        return self.at - time.time()

    @property
    def limit(self) -> float:
        """Seconds after which what is being measured is given up."""
        return self.left + GRACE_SECONDS
