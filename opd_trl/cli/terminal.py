"""What checks print: progress, verdicts in colour, tables."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from ..scripts.subject import Subject
from ..teachers import TeacherServerError


STYLES = {"ok": "green", "fix": "yellow", "stop": "bold red", "not run": "dim"}


def verdict(word: str) -> str:
    """A verdict with its colour, for rich."""
    return f"[{STYLES[word]}]{word}[/]"


def number(value: float | None, form: str = ".3f") -> str:
    """A figure, or a dash where there is none.

    >>> number(0.5), number(None)
    ('0.500', '-')
    """
    return "-" if value is None else format(value, form)


def run_check(
    prog: str,
    argv: list[str],
    check: Callable[[list[str], Console], tuple[dict[str, Any], Subject]],
    show: Callable[[dict[str, Any], Console], None],
) -> int:
    """Run a check, write its JSON where one is asked for, print it; return its exit status: 1 where it says stop."""
    console = Console()
    try:
        figures, subject = check(argv, console)
        if subject.own.json is not None:
            subject.own.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except (ValueError, ImportError, OSError, TeacherServerError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    show(figures, console)
    return int(figures["verdict"] == "stop")


@contextlib.contextmanager
def progress(title: str, total: int, console: Any) -> Iterator[Callable[[], None]]:
    """A progress bar over batches, where somebody looks."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
