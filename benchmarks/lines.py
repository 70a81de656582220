"""Lines of results: one JSON object for every measured case, on disk as soon as it is measured; and their pages."""

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from opd_trl.data.files import write_jsonl
from opd_trl.durable import atomically


Line = dict[str, Any]
FOLDER = Path(__file__).parent / "results"
# In the order of a step. `loss` is compute_loss without both forwards, `rest` what is none of the others.
PHASES = ("generation", "teacher", "student", "loss", "backward", "optimizer", "rest")
# After its deadline a case that is being measured has so long to end.
GRACE_SECONDS = 25


def read_lines(path: Path, fields: tuple[str, ...] = ()) -> list[Line]:
    """The lines of a JSONL file, none where there is no file.

    Args:
        path: of the file.
        fields: what a line is about; no two lines are about the same.

    Raises:
        ValueError: a line is not a JSON object, lacks one of the fields, or there are two about the same.
    """
    lines: dict[Any, Line] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], start=1):
        try:
            line = json.loads(text)
            key = tuple(line[name] for name in fields) or number
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no line of a case ({error}). Remove it.") from error
        if key in lines:
            raise ValueError(f"{path} has more than one line for {key}. Keep one of them.")
        lines[key] = line
    return list(lines.values())


@dataclass
class Results:
    """The lines of a file that are about what is measured here.

    Attributes:
        path: of the JSONL file.
        where: what every line carries: machine, date, versions, command.
        fields: what a line is about. Those of them that `where` has tell what is measured here from other lines.
    """

    path: Path
    where: dict[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ("size", "machine", "case")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def lines(self) -> list[Line]:
        """The lines from here."""
        here = {name: self.where[name] for name in self.fields if name in self.where}
        return [line for line in read_lines(self.path, self.fields) if here.items() <= line.items()]

    def done(self) -> set[Any]:
        """What has a line: the values of the fields that `where` lacks."""
        return set(map(itemgetter(*(name for name in self.fields if name not in self.where)), self.lines()))

    def add(self, **content: Any) -> None:
        """Append a line; one about the same is replaced."""
        line = content | self.where
        with self._lock:
            others = read_lines(self.path, self.fields)
            kept = [other for other in others if any(other[name] != line[name] for name in self.fields)]
            write_jsonl(self.path, [*kept, line])


@dataclass(frozen=True)
class Deadline:
    """The moment (`time.time()`) after which nothing more is begun."""

    at: float

    @classmethod
    def after(cls, minutes: float) -> "Deadline":
        return cls(time.time() + 60 * minutes)

    def leaves(self, seconds: float) -> bool:
        """Is there so much time left?"""
        return self.at - time.time() >= seconds

    @property
    def limit(self) -> float:
        """Seconds after which what is being measured is given up."""
        return self.at - time.time() + GRACE_SECONDS


def conditions_of(lines: list[Line], names: Iterable[str]) -> str:
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
