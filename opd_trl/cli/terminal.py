"""What commands have in common: how they read flags, show progress and verdicts, and check a run."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ..durable import in_a_line, write_json
from ..foreign import parse_json
from ..given import check_finite
from ..scripts.consoles import plain_console


def command_parser(prog: str, description: str, epilog: str | None = None, **options: Any) -> argparse.ArgumentParser:
    """A parser that prints its texts as they are written, and takes no abbreviated flags."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        prog, description=description, epilog=epilog, formatter_class=form, allow_abbrev=False, **options
    )


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object; raises ArgumentTypeError where the text is something else."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:200]!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object, such as " + '{"enable_thinking": false}')
    try:
        check_finite(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return value


def columns(text: str) -> dict[str, str]:
    """Read `prompt=question,answer=label`; `answer` alone is `answer=answer`.

    >>> columns("prompt=question,answer")
    {'prompt': 'question', 'answer': 'answer'}
    """
    pairs = [piece.strip().partition("=") for piece in text.split(",")]
    found = {ours: theirs or ours for ours, _, theirs in pairs}
    if "" in found or len(found) < len(pairs) or "prompt" not in found:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected OURS=THEIRS pairs, each name once and prompt among them, e.g. "
            "prompt=question,answer=label"
        )
    return found


def refused(prog: str, error: Exception) -> int:
    """Say in one line why a command cannot do what is asked, and return the exit status of bad input."""
    print(f"{prog}: error: {(isinstance(error, OSError) and in_a_line(error)) or error}", file=sys.stderr)
    return 2


STYLES = {"ok": "green", "info": "cyan", "fix": "yellow", "stop": "bold red", "not run": "dim"}


def verdict(word: str) -> Text:
    """A verdict with its colour, for rich."""
    return Text(word, STYLES[word])


def run_check(
    prog: str,
    argv: list[str],
    check: Callable[[list[str], Console], tuple[dict[str, Any], Path | None]],
    show: Callable[[dict[str, Any], Console], None],
) -> int:
    """Run a check of a training run and print what it found; return the exit status: 1 where it says stop.

    `check` makes figures of the arguments, and says which file to write them to as JSON; `show` prints them.
    """
    from ..teachers import TeacherServerError

    console = plain_console()
    try:
        figures, path = check(argv, console)
        show(figures, console)
        if path is not None:
            write_json(path, figures)
    except (ValueError, ImportError, OSError, TeacherServerError) as error:
        return refused(prog, error)
    return int(figures["verdict"] == "stop")


@contextlib.contextmanager
def progress(title: str, total: int | None, console: Console | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar where somebody looks, on the error stream by default; yields `advance(done=None, note=None)`.

    `total` is None where it is not known how many steps are to come. `advance()` counts one step more;
    `advance(done)` sets how many are done; `note` stands behind the bar.
    """
    columns = (TextColumn("{task.fields[title]}", markup=False), BarColumn(), MofNCompleteColumn())
    columns += (TextColumn("{task.description}", markup=False),)
    columns += (TimeElapsedColumn(), TimeRemainingColumn())
    console = console or plain_console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, title=title)

        def advance(done: int | None = None, note: str | None = None) -> None:
            bar.update(task, completed=done, advance=1 if done is None else None, description=note)

        yield advance
