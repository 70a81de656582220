"""The table at the end of a pipeline."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .runner import Outcome, Run


RESULT = "result.json"
COLOURS = {"ran": "green", "skipped": "cyan", "failed": "red", "killed": "red", "not run": "dim"}
# Names in a result.json that say how good a model is, in the order in which they are shown.
FIGURES = ("accuracy", "avg", "pass", "majority", "compliance", "perplexity", "truncat")
SHOWN = 4


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
    """The key figures of the results that a stage wrote."""
    lines = []
    for output in outcome.stage.outputs:
        path = Path(output) / RESULT
        if path.is_file():
            try:
                found = dict(numbers(json.loads(path.read_text(encoding="utf-8"))))
            except ValueError:
                continue
            ranked = sorted((rank(name), name) for name in found if rank(name) < len(FIGURES))
            lines += [f"{name} {found[name]:.4g}" for _, name in ranked[:SHOWN]]
    return lines


def rank(name: str) -> int:
    """The place of a figure by its name; those of no interest come last.

    >>> rank("math.avg@4.mean"), rank("truncation_ratio"), rank("n")
    (1, 6, 7)
    """
    parts = re.split(r"[./]", name)
    return next((i for i, start in enumerate(FIGURES) if any(part.startswith(start) for part in parts)), len(FIGURES))


def numbers(content: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result with its path, e.g. `math.avg@4`; lists are left out."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield name, content
