"""A system prompt internalised: three rules x four objectives x three seeds, judged on held-out questions.

    python benchmarks/internalise.py --model runs/demo/model             runs the cells that have no line yet
    python benchmarks/internalise.py --model ... --rule json --seed 0    some of them
    python benchmarks/internalise.py --table                             Markdown, from the lines
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


RULES = ("pirate", "json", "bullets")
REFERENCES = ("before", "teacher")
ON_POLICY = ("stop_gradient_topk", "forward_kl", "jsd")
OBJECTIVES = (*ON_POLICY, "sft")
FURTHER = ("default", "mixed")
SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parent / "results" / "internalise.jsonl"

Cell = tuple[str, str, int]


def all_cells(*, further: bool = False) -> list[Cell]:
    """Cells in the order of work: the untrained references, then all of seed 0, of seed 1, of seed 2.

    `sft` comes after the cells whose tokens it matches; the further objectives come last of all.
    """
    cells = [(rule, reference, 0) for rule in RULES for reference in REFERENCES]
    cells += [(rule, objective, seed) for seed in SEEDS for rule in RULES for objective in OBJECTIVES]
    if further:
        cells += [(rule, objective, seed) for objective in FURTHER for seed in SEEDS for rule in RULES]
    return cells


def cell_of(line: dict[str, Any]) -> Cell:
    return line["rule"], line["objective"], line["seed"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The finished cells.

    Raises:
        ValueError: a line is no JSON object of a cell, or a cell has two lines.
    """
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], start=1):
        try:
            lines.append(json.loads(text))
            cell_of(lines[-1])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no result of a cell ({error}). Remove the line.") from error
    cells = [cell_of(line) for line in lines]
    if doubled := sorted({cell for cell in cells if cells.count(cell) > 1}):
        raise ValueError(f"{path} has more than one line for {doubled[0]}. Keep one of them.")
    return lines


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Write the file anew with one more line, then put it in the place of the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    temporary = path.with_suffix(".part")
    temporary.write_text(before + json.dumps(line) + "\n", encoding="utf-8")
    temporary.replace(path)


def open_cells(cells: list[Cell], lines: list[dict[str, Any]]) -> list[Cell]:
    """Cells without a line, in their order."""
    done = {cell_of(line) for line in lines}
    return [cell for cell in cells if cell not in done]


def token_budget(lines: list[dict[str, Any]], rule: str, seed: int) -> int:
    """Completion tokens for `sft`: the mean of the on-policy cells of the same rule and seed.

    Raises:
        ValueError: one of them is not finished.
    """
    seen = {
        line["objective"]: line["completion_tokens"]
        for line in lines
        if cell_of(line)[::2] == (rule, seed) and line["objective"] in ON_POLICY
    }
    if missing := [name for name in ON_POLICY if name not in seen]:
        raise ValueError(f"sft of rule {rule}, seed {seed} needs the tokens of {', '.join(missing)}. Run them first.")
    return round(fmean(seen.values()))


def run_in_fresh_process(cell: Cell, args, budget: int | None) -> dict[str, Any]:
    """Run a cell and return its line.

    Raises:
        RuntimeError: it fails; its log says why.
    """
    rule, objective, seed = cell
    folder = args.output / f"{rule}-{objective}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--worker", "--model", args.model, "--output", str(folder)]
    command += ["--rule", rule, "--objective", objective, "--seed", str(seed)]
    command += ["--budget", str(budget)] if budget else []
    # Threads that wait must not spin: the machine may have other work.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", **os.environ}
    with open(folder / "log.txt", "w") as log:
        result = subprocess.run(command, env=environment, stdout=log, stderr=log)
    if result.returncode:
        raise RuntimeError(f"cell {cell} ended with status {result.returncode}; its log: {folder / 'log.txt'}")
    return json.loads((folder / "line.json").read_text())


def commit() -> str:
    """The commit of this checkout, with a mark where tracked files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() or "no git checkout"


def run_cells(args) -> None:
    """Run what is open, line by line."""
    from rich.console import Console

    console = Console()
    cells = [
        cell
        for cell in all_cells(further=args.further or args.objective in FURTHER)
        if all(
            wanted in (None, part) for part, wanted in zip(cell, (args.rule, args.objective, args.seed), strict=True)
        )
    ]
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


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/demo/model", help="the student (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSONL of finished cells (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/internalise"), help="adapters, answers and curves (%(default)s)"
    )
    parser.add_argument("--rule", choices=RULES, default=None, help="this rule only (default: all)")
    parser.add_argument(
        "--objective", choices=(*REFERENCES, *OBJECTIVES, *FURTHER), default=None, help="this one only (default: all)"
    )
    parser.add_argument("--seed", type=int, choices=SEEDS, default=None, help="this seed only (default: all)")
    parser.add_argument("--further", action="store_true", help=f"afterwards also {' and '.join(FURTHER)}")
    parser.add_argument("--table", action="store_true", help="print the table of the finished cells and stop")
    parser.add_argument("--plot", type=Path, default=None, help="draw the finished cells into this file and stop")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=int, default=None, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        if args.worker:
            from internalise_cell import run_cell

            line = run_cell(args, args.budget)
            (args.output / "line.json").write_text(json.dumps(line) + "\n")
        elif args.table or args.plot:
            from internalise_table import draw, print_tables

            lines = read_lines(args.results)
            if args.table:
                print_tables(lines)
            if args.plot:
                draw(lines, args.plot)
        else:
            run_cells(args)
    except (ValueError, RuntimeError) as error:
        print(f"internalise: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
