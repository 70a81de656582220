"""The table at the end of a pipeline."""

import json
import shlex
from pathlib import Path
from typing import Any

from .runner import Outcome, Run


RESULT = "result.json"
COLOURS = {"ran": "green", "skipped": "cyan", "failed": "red", "killed": "red", "not run": "dim"}
# Figures of a result that are shown.
SHOWN = 3


def print_outcomes(console: Any, outcomes: list[Outcome]) -> None:
    """Print a row for each stage: state, seconds, outputs, key figures."""
    from rich.table import Table
    from rich.text import Text

    table = Table("stage", "state", "seconds", "outputs", "figures", box=None, pad_edge=False)
    for outcome in outcomes:
        table.add_row(
            outcome.stage.name,
            Text(outcome.state, style=COLOURS[outcome.state]),
            "" if outcome.seconds is None else f"{outcome.seconds:.1f}",
            "\n".join(outcome.stage.outputs),
            Text("\n".join(figures(outcome)) if outcome.state in ("ran", "skipped") else ""),
        )
    console.print()
    console.print(table)
    for outcome in outcomes:
        if outcome.reason:
            console.print(f"{outcome.stage.name}: {outcome.reason}", style="red", markup=False, highlight=False)


def print_plan(console: Any, run: Run, planned: list) -> None:
    """Print which stages would run, why, and with which command lines."""
    for number, (stage, reason) in enumerate(planned, 1):
        state = f"runs: {reason}" if reason else "is skipped: command, inputs and outputs are unchanged"
        console.print(f"[{number}/{len(planned)}] {stage.name} {state}", markup=False, highlight=False)
        print(f"    {shlex.join(run.command(stage))}")


def figures(outcome: Outcome) -> list[str]:
    """The first figures of the results that a stage wrote, with their intervals; see `opd-trl eval`."""
    lines = []
    for output in outcome.stage.outputs:
        path = Path(output) / RESULT
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8")).get("figures", {})
                lines += [as_line(name, figure) for name, figure in list(found.items())[:SHOWN]]
            except (ValueError, AttributeError, TypeError, KeyError):  # another program's result.json
                continue
    return lines


def as_line(name: str, figure: dict[str, Any]) -> str:
    """A figure and its interval.

    >>> as_line("avg@8", {"value": 0.28241, "low": 0.2674, "high": 0.298})
    'avg@8 0.282 [0.267, 0.298]'
    """
    return "{} {:.3g} [{:.3g}, {:.3g}]".format(name, *(figure[key] for key in ("value", "low", "high")))
