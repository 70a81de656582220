"""A system prompt internalised: three rules x four objectives x three seeds, judged on held-out questions.

    python benchmarks/internalise.py --model runs/demo/model             runs the cells that have no line yet
    python benchmarks/internalise.py --model ... --rule json --seed 0    some of them
    python benchmarks/internalise.py --merge a.jsonl b.jsonl             results of several processes into --results
    python benchmarks/internalise.py --retention --model ...             plain text and short questions, per adapter
    python benchmarks/internalise.py --recheck                           stored answers judged again: same verdicts?
    python benchmarks/internalise.py --table                             Markdown, from the lines
    python benchmarks/internalise.py --write docs/results.md             the same, between the marks of that page
    python benchmarks/internalise.py --plot docs/images/internalise.png

The student sees the bare question; the teacher is the same model, adapter off, reading a system message and four
worked examples. Every cell has the same model, LoRA rank, learning rate, steps, questions and completion length, and
runs in a process of its own; its line is appended when it is done, so the command goes on where it was stopped. SFT
takes answers that the teacher wrote, as many completion tokens as the on-policy cells of its rule and seed saw on
average. `--model` is what `opd-trl demo --prepare-only` writes.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from internalise_lines import (
    FURTHER,
    HELD_OUT,
    OBJECTIVES,
    REFERENCES,
    RULES,
    SEEDS,
    Cell,
    add_line,
    all_cells,
    folder_of,
    merge,
    open_cells,
    read_lines,
    token_budget,
)
from measure import commit


FOLDER = Path(__file__).parent / "results"
RESULTS = FOLDER / "internalise.jsonl"
RETENTION = FOLDER / "internalise_retention.jsonl"
# Threads that wait must not spin: the machine may have other work.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def run_in_fresh_process(cell: Cell, args: argparse.Namespace, budget: int | None) -> dict[str, Any]:
    """Run a cell and return its line.

    Raises:
        RuntimeError: it fails; its log says why.
    """
    rule, objective, seed = cell
    folder = folder_of(args.output, cell)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--worker", "--model", args.model, "--output", str(folder)]
    command += ["--rule", rule, "--objective", objective, "--seed", str(seed)]
    command += ["--budget", str(budget)] if budget else []
    with open(folder / "log.txt", "w") as log:
        result = subprocess.run(command, env={**QUIET, **os.environ}, stdout=log, stderr=log)
    if result.returncode:
        raise RuntimeError(f"cell {cell} ended with status {result.returncode}; its log: {folder / 'log.txt'}")
    return json.loads((folder / "line.json").read_text())


def chosen_cells(args: argparse.Namespace) -> list[Cell]:
    """Cells that --rule, --objective and --seed leave, in the order of work."""
    wanted = (args.rule, args.objective, args.seed)
    return [
        cell
        for cell in all_cells(further=args.further or args.objective in FURTHER)
        if all(value in (None, part) for value, part in zip(wanted, cell, strict=True))
    ]


def run_cells(args: argparse.Namespace) -> None:
    """Run what is open, line by line."""
    from rich.console import Console

    console = Console()
    cells = chosen_cells(args)
    todo = open_cells(cells, read_lines(args.results))
    console.print(f"{len(todo)} of {len(cells)} cells to run")
    for number, cell in enumerate(todo, start=1):
        rule, objective, seed = cell
        budget = token_budget(read_lines(args.results), rule, seed) if objective == "sft" else None
        line = run_in_fresh_process(cell, args, budget) | {"commit": commit()}
        add_line(args.results, line)
        greedy, elsewhere = fmean(line["greedy"]), fmean(line["elsewhere"])
        console.print(
            f"{number}/{len(todo)} {rule}, {objective}, seed {seed}: follows {greedy:.2f}, leaks {elsewhere:.2f}, "
            f"{line['wall_seconds']:.0f} s"
        )


def run_worker(args: argparse.Namespace) -> None:
    """One cell, in this process."""
    from internalise_cell import run_cell

    line = run_cell(args, args.budget)
    (args.output / "line.json").write_text(json.dumps(line) + "\n")


def run_merge(args: argparse.Namespace) -> None:
    lines, added = merge(args.results, args.merge)
    print(f"{args.results}: {lines} cells, {added} of them added")


def run_recheck(args: argparse.Namespace) -> None:
    """Judge the stored answers again.

    Raises:
        ValueError: a verdict differs from the stored one.
    """
    from internalise_rules import recheck

    lines = read_lines(args.results)
    print(f"{recheck(lines, args.output)} answers judged again, each as its line has it")


def show(args: argparse.Namespace) -> None:
    """Tables on the screen or on a page, and the picture."""
    from internalise_table import tables
    from marks import write_between_marks

    lines = read_lines(args.results)
    if args.table or args.write:
        text = tables(lines, read_lines(args.retention_results))
        if args.table:
            print(text)
        if args.write:
            write_between_marks(args.write, text, "internalise")
            print(f"written: {args.write}")
    if args.plot:
        from internalise_picture import draw

        draw(lines, args.plot)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="runs/demo/model", help="the student (%(default)s)")
    add("--results", type=Path, default=RESULTS, help="JSONL of finished cells (%(default)s)")
    add("--output", type=Path, default=Path("runs/internalise"), help="adapters, answers and curves (%(default)s)")
    add("--rule", choices=RULES, default=None, help="this rule only (default: all)")
    add("--objective", choices=(*REFERENCES, *OBJECTIVES, *FURTHER), help="this one only (default: all)")
    add("--seed", type=int, choices=SEEDS, default=None, help="this seed only (default: all)")
    add("--further", action="store_true", help=f"afterwards also {' and '.join(FURTHER)}")
    add("--merge", type=Path, nargs="+", metavar="FILE", help="put these results into --results and stop")
    add("--recheck", action="store_true", help="judge the answers in --output again and stop")
    add("--retention", action="store_true", help="run `opd-trl eval --suite retention` on finished cells and stop")
    add("--retention-results", type=Path, default=RETENTION, help="JSONL of --retention (%(default)s)")
    add("--table", action="store_true", help="print the tables of the finished cells and stop")
    add("--write", type=Path, metavar="PAGE", help="put the tables between the marks of this page and stop")
    add("--plot", type=Path, metavar="FILE", help="draw the finished cells into this file and stop")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    add("--budget", type=int, default=None, help=argparse.SUPPRESS)
    parser.set_defaults(device="cpu", settings={}, held_out=HELD_OUT)  # gpu.py has others
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        if args.worker:
            run_worker(args)
        elif args.merge:
            run_merge(args)
        elif args.recheck:
            run_recheck(args)
        elif args.retention:
            from internalise_retention import run_retention

            run_retention(args, chosen_cells(args))
        elif args.table or args.write or args.plot:
            show(args)
        else:
            run_cells(args)
    except (ValueError, RuntimeError) as error:
        print(f"internalise: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
