"""What a trial says of a run of a study: the run's own first steps, looked at, and written down before it goes on."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..durable import write_json
from ..preflight.trial.run import Looks, looks_of
from ..preflight.trial.verdict import DIVERGENCE, SCORE, Change, changes, judged


FILE = "forecast.json"


class Foretell(Looks):
    """Looks on at the trials of a run, which are its first steps, and writes their words to a file in its folder.

    The looks change nothing of the run (a test of the trial has it, bit for bit), so that the words are those of
    trials beforehand at a part of the time.

    Args:
        trainer: of the run.
        steps: of each trial.
        rows: held-out ones.
        judge: scores answers.
        folder: of the run.
    """

    def __init__(self, trainer, steps: list[int], rows: list[dict[str, Any]], judge, folder: Path):
        super().__init__(trainer, {look for n in steps for look in looks_of(n)}, rows, judge, stop=False)
        self.steps, self.path = steps, folder / FILE

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == max(self.at):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.said() | {"written": datetime.now(UTC).isoformat()})

    def said(self) -> dict[str, Any]:
        """The word of each trial, and what its figures have changed by, from before and from half-way to its end."""
        said: dict[str, Any] = {"words": {}, "changes": {}, "second_half": {}}
        for steps in self.steps:
            whole = changes(self.found[0], self.found[steps])
            half = changes(self.found[steps // 2], self.found[steps])
            said["words"][str(steps)] = judged(whole, half)
            said["changes"][str(steps)] = numbers(whole)
            said["second_half"][str(steps)] = numbers({name: half[name] for name in (SCORE, DIVERGENCE)})
        return said


def numbers(found: Mapping[str, Change]) -> dict[str, list[float]]:
    """Figure -> its value before, its change, and the ends of that one's interval."""
    rows = {name: (x.before.value, x.change.value, x.change.low, x.change.high) for name, x in found.items()}
    return {name: [float(f"{value:.4g}") for value in row] for name, row in rows.items()}


def kept(folder: Path) -> dict[str, Any]:
    """What was written in the folder of a run, and the SHA-256 of that file."""
    content = (folder / FILE).read_bytes()
    return json.loads(content) | {"sha256": hashlib.sha256(content).hexdigest()}
