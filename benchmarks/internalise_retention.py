"""What the adapters of `internalise.py` have kept: `opd-trl eval --suite retention` on each, gathered as lines.

One line per adapter, and one of the student without: right or wrong for each short question, nats per byte of each
plain text, in the order of their ids, so that lines are compared question by question.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

from internalise_lines import REFERENCES, Cell, Line, add_line, cell_of, folder_of, open_cells, read_lines


# The student without adapter is the same for all rules.
BEFORE: Cell = ("any", "before", 0)


def run_retention(args: argparse.Namespace, cells: list[Cell]) -> None:
    """Evaluate the finished cells that have no line yet, after the student without adapter.

    Raises:
        ValueError: a finished cell has no adapter in `args.output`; nothing is run.
        RuntimeError: an evaluation fails; its log says why. The lines until then are kept.
    """
    finished = {cell_of(line) for line in read_lines(args.results)}
    trained = [cell for cell in cells if cell in finished and cell[1] not in REFERENCES]
    todo = open_cells([BEFORE, *trained], read_lines(args.retention_results))
    adapters = {cell: folder_of(args.output, cell) / "adapter" for cell in todo if cell != BEFORE}
    if missing := [path for path in adapters.values() if not (path / "adapter_config.json").is_file()]:
        raise ValueError(
            f"{missing[0]} holds no adapter, nor do {len(missing) - 1} others. Give --output of the runs."
        )
    print(f"{len(todo)} of {len(trained) + 1} evaluations to run", flush=True)
    for number, cell in enumerate(todo, start=1):
        line = evaluate(cell, args.model, adapters.get(cell), folder_of(args.output, cell) / "retention")
        add_line(args.retention_results, line)
        right, nats = fmean(line["tasks"]), fmean(line["nats_per_byte"])
        seconds = line["wall_seconds"]
        print(f"{number}/{len(todo)} {cell}: right {right:.2f}, nats per byte {nats:.4f}, {seconds:.0f} s", flush=True)


def evaluate(cell: Cell, model: str, adapter: Path | None, output: Path) -> Line:
    """Run the command, which goes on where it was stopped, and return its line.

    Raises:
        RuntimeError: it fails.
    """
    command = [sys.executable, "-m", "opd_trl.cli.main", "eval", "--suite", "retention", "--model", model]
    command += ["--output", str(output)] + (["--adapter", str(adapter)] if adapter else [])
    output.parent.mkdir(parents=True, exist_ok=True)
    start, log = time.perf_counter(), output.parent / "retention.log"
    with log.open("w") as file:
        result = subprocess.run(command, env={"HF_HUB_OFFLINE": "1", **os.environ}, stdout=file, stderr=file)
    if result.returncode:
        raise RuntimeError(f"retention of {cell} ended with status {result.returncode}; its log: {log}")
    return line_of(cell, output) | {"wall_seconds": round(time.perf_counter() - start, 1)}


def line_of(cell: Cell, output: Path) -> Line:
    """The line of an evaluation that is done."""
    samples = [json.loads(text) for text in (output / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    samples.sort(key=lambda sample: sample["problem"])
    done = json.loads((output / "result.json").read_text(encoding="utf-8"))
    conditions = {name: done["conditions"][name] for name in ("versions", "git_commit", "machine", "date")}
    return {
        **dict(zip(("rule", "objective", "seed"), cell, strict=True)),
        "tasks": [int(sample["correct"]) for sample in samples if sample["part"] == "tasks"],
        "nats_per_byte": [round(s["nats"] / s["bytes"], 5) for s in samples if s["part"] == "texts"],
        "protocol_hash": done["protocol_hash"],
        "data": done["identity"]["data"],
        "conditions": conditions,
    }
