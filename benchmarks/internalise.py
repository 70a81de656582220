"""A system prompt internalised: three rules x four objectives x three seeds, judged on held-out questions.

    python benchmarks/internalise.py --model runs/demo/model             runs the cells that have no line yet
    python benchmarks/internalise.py --model ... --rule json --seed 0    some of them
    python benchmarks/internalise.py --retention --model ...             plain text and short questions, per adapter
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
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from measure import commit, read_lines, write_between_marks, write_lines


RULES = ("pirate", "json", "bullets")
REFERENCES = ("before", "teacher")
ON_POLICY = ("stop_gradient_topk", "forward_kl", "jsd")
OBJECTIVES = (*ON_POLICY, "sft")
SEEDS = (0, 1, 2)
HELD_OUT = 48  # questions, of those that the rule is for and of those elsewhere
FOLDER = Path(__file__).parent / "results"
RESULTS = FOLDER / "internalise.jsonl"
RETENTION = FOLDER / "internalise_retention.jsonl"
# Threads that wait must not spin: the machine may have other work.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

Cell = tuple[str, str, int]
Line = dict[str, Any]
# In the lines of --retention: the student without adapter, which is the same for all rules.
BEFORE: Cell = ("any", "before", 0)


def all_cells() -> list[Cell]:
    """Cells in the order of work: the untrained references, then all of seed 0, of seed 1, of seed 2.

    `sft` comes after the cells whose tokens it matches.
    """
    cells = [(rule, reference, 0) for rule in RULES for reference in REFERENCES]
    return cells + [(rule, objective, seed) for seed in SEEDS for rule in RULES for objective in OBJECTIVES]


def cell_of(line: Line) -> Cell:
    return line["rule"], line["objective"], line["seed"]


def folder_of(output: Path, cell: Cell) -> Path:
    """Where a cell keeps its adapter, answers and curves."""
    return output / "-".join(map(str, cell))


def read_cells(path: Path) -> list[Line]:
    """The finished cells of a file; raises ValueError where a cell has two lines."""
    lines = read_lines(path, cell_of)
    cells = [cell_of(line) for line in lines]
    if doubled := sorted({cell for cell in cells if cells.count(cell) > 1}):
        raise ValueError(f"{path} has more than one line for {doubled[0]}. Keep one of them.")
    return lines


def add_line(path: Path, line: Line) -> None:
    """The file with one more line."""
    write_lines(path, [*read_cells(path), line])


def open_cells(cells: list[Cell], lines: list[Line]) -> list[Cell]:
    """Cells without a line, in their order."""
    done = {cell_of(line) for line in lines}
    return [cell for cell in cells if cell not in done]


def chosen_cells(args: argparse.Namespace) -> list[Cell]:
    """Cells that --rule, --objective and --seed leave, in the order of work."""
    wanted = (args.rule, args.objective, args.seed)
    return [
        cell for cell in all_cells() if all(value in (None, part) for value, part in zip(wanted, cell, strict=True))
    ]


def token_budget(lines: list[Line], rule: str, seed: int) -> int:
    """Completion tokens for `sft`: the mean of the on-policy cells of the same rule and seed.

    Raises:
        ValueError: one of them is not finished.
    """
    seen = {cell_of(line): line["completion_tokens"] for line in lines if line["objective"] in ON_POLICY}
    if missing := [name for name in ON_POLICY if (rule, name, seed) not in seen]:
        raise ValueError(f"sft of rule {rule}, seed {seed} needs the tokens of {', '.join(missing)}. Run them first.")
    return round(fmean(seen[rule, name, seed] for name in ON_POLICY))


def run_logged(command: list[str], log: Path) -> None:
    """Run a Python command in a process of its own, which prints into `log`.

    Raises:
        RuntimeError: it fails; the log says why.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run([sys.executable, *command], env={**QUIET, **os.environ}, stdout=file, stderr=file)
    if done.returncode:
        raise RuntimeError(f"it ended with status {done.returncode}; its log: {log}")


def run_cells(args: argparse.Namespace) -> None:
    """Train and judge the open cells, one after the other."""
    cells = chosen_cells(args)
    todo = open_cells(cells, read_cells(args.results))
    print(f"{len(todo)} of {len(cells)} cells to run", flush=True)
    for number, cell in enumerate(todo, start=1):
        rule, objective, seed = cell
        budget = token_budget(read_cells(args.results), rule, seed) if objective == "sft" else None
        line = in_fresh_process(cell, args, budget) | {"commit": commit()}
        add_line(args.results, line)
        greedy, elsewhere = fmean(line["greedy"]), fmean(line["elsewhere"])
        print(
            f"{number}/{len(todo)} {rule}, {objective}, seed {seed}: follows {greedy:.2f}, leaks {elsewhere:.2f}, "
            f"{line['wall_seconds']:.0f} s",
            flush=True,
        )


def in_fresh_process(cell: Cell, args: argparse.Namespace, budget: int | None) -> Line:
    """Run a cell and return its line."""
    folder = folder_of(args.output, cell)
    command = [__file__, "--worker", "--model", args.model, "--output", str(folder)]
    for flag, value in zip(("--rule", "--objective", "--seed", "--budget"), (*cell, budget), strict=True):
        command += [] if value is None else [flag, str(value)]
    run_logged(command, folder / "log.txt")
    return json.loads((folder / "line.json").read_text())


def run_worker(args: argparse.Namespace) -> None:
    """One cell, in this process."""
    from internalise_cell import run_cell

    line = run_cell(args, args.budget)
    (args.output / "line.json").write_text(json.dumps(line) + "\n")


def run_retention(args: argparse.Namespace) -> None:
    """Evaluate the finished cells that have no line of it yet, after the student without adapter.

    Raises:
        ValueError: a finished cell has no adapter in `args.output`; nothing is run.
    """
    finished = {cell_of(line) for line in read_cells(args.results)}
    trained = [cell for cell in chosen_cells(args) if cell in finished and cell[1] not in REFERENCES]
    todo = open_cells([BEFORE, *trained], read_cells(args.retention_results))
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
        print(f"{number}/{len(todo)} {cell}: right {right:.2f}, nats per byte {nats:.4f}", flush=True)


def evaluate(cell: Cell, model: str, adapter: Path | None, output: Path) -> Line:
    """What an adapter has kept, by `opd-trl eval --suite retention`, which goes on where it was stopped.

    The line has right or wrong for each short question and nats per byte of each plain text, in the order of their
    ids, so that lines are compared question by question.
    """
    command = ["-m", "opd_trl.cli.main", "eval", "--suite", "retention", "--model", model, "--output", str(output)]
    start = time.perf_counter()
    run_logged(command + (["--adapter", str(adapter)] if adapter else []), output.parent / "retention.log")
    samples = sorted(read_lines(output / "samples.jsonl"), key=lambda sample: sample["problem"])
    done = json.loads((output / "result.json").read_text(encoding="utf-8"))
    return {
        **dict(zip(("rule", "objective", "seed"), cell, strict=True)),
        "tasks": [int(sample["correct"]) for sample in samples if sample["part"] == "tasks"],
        "nats_per_byte": [round(s["nats"] / s["bytes"], 5) for s in samples if s["part"] == "texts"],
        "protocol_hash": done["protocol_hash"],
        "data": done["identity"]["data"],
        "conditions": {name: done["conditions"][name] for name in ("versions", "git_commit", "machine", "date")},
        "wall_seconds": round(time.perf_counter() - start, 1),
    }


def show(args: argparse.Namespace) -> None:
    """Tables on the screen or on a page, and the picture."""
    from internalise_table import draw, tables

    lines = read_cells(args.results)
    if not lines:
        raise ValueError("there is no finished cell. Run some.")
    if args.table or args.write:
        text = tables(lines, read_cells(args.retention_results))
        if args.table:
            print(text)
        if args.write:
            write_between_marks(args.write, text, "internalise")
    if args.plot:
        draw(lines, args.plot)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="runs/demo/model", help="the student (%(default)s)")
    add("--results", type=Path, default=RESULTS, help="JSONL of finished cells (%(default)s)")
    add("--output", type=Path, default=Path("runs/internalise"), help="adapters, answers and curves (%(default)s)")
    add("--rule", choices=RULES, help="this rule only (default: all)")
    add("--objective", choices=(*REFERENCES, *OBJECTIVES), help="this one only (default: all)")
    add("--seed", type=int, choices=SEEDS, help="this seed only (default: all)")
    add("--retention", action="store_true", help="run `opd-trl eval --suite retention` on finished cells and stop")
    add("--retention-results", type=Path, default=RETENTION, help="JSONL of --retention (%(default)s)")
    add("--table", action="store_true", help="print the tables of the finished cells and stop")
    add("--write", type=Path, metavar="PAGE", help="put the tables between the marks of this page and stop")
    add("--plot", type=Path, metavar="FILE", help="draw the finished cells into this file and stop")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    add("--budget", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(device="cpu", settings={}, held_out=HELD_OUT)  # gpu.py has others
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        if args.worker:
            run_worker(args)
        elif args.retention:
            run_retention(args)
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
