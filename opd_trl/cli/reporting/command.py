"""From the arguments of `opd-trl report` to its files."""

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...reports.page import render
from ...reports.reading import RunLogError, read_run
from ...reports.summary import figures


PAGE = "report.html"


def write_report(args: argparse.Namespace, now: datetime | None = None) -> tuple[dict[str, Any], list[Path]]:
    """Read the runs and write what was asked for.

    Args:
        args: of the command line: runs, output, png, json.
        now: the time of the report; that of the clock by default.

    Returns:
        The figures, and the files that were written.

    Raises:
        RunLogError: a run cannot be read, or is given twice; nothing was written.
        OSError: a file cannot be written.
    """
    now = now or datetime.now(UTC)
    runs = [read_run(folder) for folder in args.runs]
    twice = {str(run.folder) for run in runs if sum(other.folder == run.folder for other in runs) > 1}
    if twice:
        raise RunLogError(f"{', '.join(sorted(twice))} is given twice. Give each run once.")
    output = args.output or (runs[0].folder if len(runs) == 1 else Path()) / PAGE
    if output.is_dir():
        raise RunLogError(f"--output {output} is a folder. Name a file, such as {output / PAGE}.")
    told = figures(runs, now)
    page = render(runs, told, now)
    written = [atomically(output, page)]
    if args.json is not None:
        written.append(atomically(args.json, json.dumps(told, indent=2) + "\n"))
    if args.png is not None:
        from .pictures import write_pictures

        written += write_pictures(runs, told, args.png)
    return told, written


def atomically(path: Path, text: str) -> Path:
    """Write a file under a temporary name and rename it: a browser that reloads sees the old page or the whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    # A token may be half a character, which UTF-8 cannot hold.
    scratch.write_text(text, encoding="utf-8", errors="replace")
    os.replace(scratch, path)
    return path
