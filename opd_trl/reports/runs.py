"""A run as its log tells it: sessions put together, how it ended, how long it took."""

from array import array
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np


OPEN = "no end recorded"


class Column:
    """The values of a metric line by line, before sessions are put together."""

    def __init__(self) -> None:
        self.steps, self.sessions, self.values = array("q"), array("q"), array("d")

    def append(self, step: int, session: int, value: float = 0.0) -> None:
        """Add the value that a session logged at a step."""
        self.steps.append(step)
        self.sessions.append(session)
        self.values.append(value)


@dataclass(frozen=True)
class Series:
    """A metric over the steps of a run: `steps` rise, and `values` are finite; both `(n,)`."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Run:
    """What the run log of a run holds.

    Args:
        folder: its `output_dir`.
        sessions: of `run.json`, one for each start.
        series: metric -> its values, those of steps that were run again left out.
        not_finite: metric -> steps at which it was NaN or infinite.
        ends: session -> (last step, seconds from the start of the session to its last line).
        samples, warnings: their lines; a warning of steps that were run again has `superseded`.
        unread: lines that could not be read.
        lines: lines of the log that were.
    """

    folder: Path
    sessions: list[dict[str, Any]]
    series: dict[str, Series]
    not_finite: dict[str, list[int]]
    ends: dict[int, tuple[int, float]]
    samples: list[dict[str, Any]]
    warnings: list[dict[str, Any]]
    unread: Any
    lines: int

    @property
    def session(self) -> dict[str, Any]:
        """The last session: what the run is now."""
        return self.sessions[-1]

    @property
    def step(self) -> int:
        """The last step that was logged."""
        last = len(self.sessions) - 1
        return self.ends[last][0] if last in self.ends else max([0, *(end[0] for end in self.ends.values())])

    @property
    def state(self) -> str:
        """`finished`, `stopped by the monitor` or `no end recorded`."""
        outcome = self.session.get("outcome")
        return outcome if isinstance(outcome, str) and outcome else OPEN

    @property
    def seconds(self) -> float:
        """Seconds of all sessions; one without an end counts up to its last line."""
        return sum(session_seconds(entry, self.ends.get(i)) for i, entry in enumerate(self.sessions))

    @property
    def resumed_at(self) -> list[int]:
        """Steps from which later sessions went on."""
        return [int(entry.get("first_step") or 0) for entry in self.sessions[1:]]

    def age(self, now: datetime) -> float | None:
        """Seconds from the last line of the last session to `now`, or None where its start is unreadable."""
        started = moment(self.session.get("started"))
        if started is None:
            return None
        last = self.ends.get(len(self.sessions) - 1, (0, 0.0))[1]
        return max(0.0, (now - started - timedelta(seconds=last)).total_seconds())

    def seconds_per_line(self) -> float | None:
        """The usual time between two steps that were logged, of the last session."""
        last = len(self.sessions) - 1
        step, seconds = self.ends.get(last, (0, 0.0))
        done = step - int(self.session.get("first_step") or 0)
        gaps = np.diff(max((s.steps for s in self.series.values()), key=len, default=np.zeros(0)))
        return seconds / done * float(np.median(gaps)) if done > 0 and len(gaps) else None


def surviving(sessions: list[dict[str, Any]], logged: set[int]) -> dict[int, float]:
    """Session -> the last of its steps that no later session ran again; sessions without a line replace nothing.

    >>> surviving([{"first_step": 0}, {"first_step": 20}, {"first_step": 50}], logged={0, 1})
    {0: 20, 1: inf, 2: inf}
    """
    first = {i: int(entry.get("first_step") or 0) for i, entry in enumerate(sessions) if i in logged}
    return {
        i: min([step for later, step in first.items() if later > i], default=float("inf"))
        for i in range(len(sessions))
    }


def merged(column: Column, limits: dict[int, float]) -> Series:
    """Put the sessions of a metric together; a step that is logged twice keeps what was logged last.

    >>> column = Column()
    >>> for row in ((1, 0, 0.1), (2, 0, 0.2), (2, 1, 0.3)):
    ...     column.append(*row)
    >>> merged(column, {0: 1, 1: float("inf")}).values.tolist()
    [0.1, 0.3]
    """
    steps, sessions, values = np.array(column.steps), np.array(column.sessions), np.array(column.values)
    kept = np.ones(len(steps), dtype=bool)
    for session, limit in limits.items():
        kept &= (sessions != session) | (steps <= limit)
    steps, values = steps[kept], values[kept]
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    last = np.append(steps[1:] != steps[:-1], True)[: len(steps)]
    return Series(steps[last], values[last])


def moment(text: Any) -> datetime | None:
    """An ISO-8601 time; without a zone it is taken as UTC.

    >>> moment("2026-11-22T10:00:00Z") == moment("2026-11-22T10:00:00")
    True
    """
    try:
        parsed = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def session_seconds(session: dict[str, Any], end: tuple[int, float] | None) -> float:
    """Seconds that a session ran: to its end, or where that is not known to its last line."""
    started, ended = moment(session.get("started")), moment(session.get("ended"))
    if started is not None and ended is not None:
        return max(0.0, (ended - started).total_seconds())
    return end[1] if end else 0.0
