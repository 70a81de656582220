"""The files of a run: what it is, its log lines, samples and warnings, written as they come."""

import json
import logging
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..durable import append_lines, atomically, cut_unfinished_line
from ..foreign import parse_json


logger = logging.getLogger(__name__)


FOLDER = "run_log"
FORMAT = 1


class RunLog:
    """Writes `<output_dir>/run_log`. A run that goes on adds a session; lines of all sessions lie in the same files.

    Args:
        folder: of the run's outputs.
        session: what is known of this run; see `opd_trl.trainers.monitoring`.

    Raises:
        ValueError: `run.json` is there and is not a run log.
    """

    def __init__(self, folder: str | Path, session: dict[str, Any]):
        self.folder = Path(folder) / FOLDER
        self.sessions = read_sessions(self.folder / "run.json")
        self.index = len(self.sessions)
        self._start = time.monotonic()
        self._is_broken = False
        self.sessions.append({"started": now(), "ended": None, "outcome": None, **session})
        self._guarded(self._open)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """A line of the trainer's log: numbers as they are, NaN and infinities as null and named."""
        numbers = {name: x for name, x in figures.items() if x is None or isinstance(x, (int, float))}
        broken = [name for name, x in numbers.items() if x is not None and not math.isfinite(x)]
        line = {"seconds": round(time.monotonic() - self._start, 3), **numbers, **dict.fromkeys(broken)}
        self.write("log", step, line | ({"not_finite": broken} if broken else {}))

    def write(self, name: str, step: int, entry: Mapping[str, Any]) -> None:
        """Append a line to `<name>.jsonl`, readable at once."""
        line = {"step": step, "session": self.index, **entry}
        self._guarded(append_lines, self.folder / f"{name}.jsonl", [line])

    def end(self, outcome: str) -> None:
        """Note in `run.json` when and how the session ended: `outcome` in words."""
        self.sessions[self.index] |= {"ended": now(), "outcome": outcome}
        self._guarded(self._write_sessions)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.jsonl"):
            cut_unfinished_line(path)
        self._write_sessions()

    def _write_sessions(self) -> None:
        content = {"format": FORMAT, "sessions": self.sessions}
        with atomically(self.folder / "run.json") as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def _guarded(self, write, *args) -> None:
        """A full disk must not end a run of hours for the sake of its log: say so once, and train on."""
        if self._is_broken:
            return
        try:
            write(*args)
        except OSError as error:
            self._is_broken = True
            logger.warning(f"the run log in {self.folder} can no longer be written ({error}). Training goes on.")


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions of a `run.json`; none where there is no such file."""
    if not path.exists():
        return []
    try:
        content = parse_json(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version writes {FORMAT}")
        return content["sessions"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a run log that can be continued ({error!r}). Move the folder {path.parent} away, or "
            "choose another output_dir."
        ) from error


def now() -> str:
    """The time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
