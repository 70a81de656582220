"""A system prompt internalised: three rules x four objectives x three seeds, judged on held-out questions.

    python benchmarks/internalise.py --model runs/demo/model             runs the cells that have no line yet
    python benchmarks/internalise.py --model ... --rule json --seed 0    some of them
    python benchmarks/internalise.py --retention --model ...             plain text and short questions, per adapter
    python benchmarks/internalise.py --table                             Markdown, from the lines
    python benchmarks/internalise.py --write docs/results-rules.md       the same, between the marks of that page
    python benchmarks/internalise.py --plot docs/images/internalise.png

The student sees the bare question; the teacher is the same model, adapter off, reading a system message and four
worked examples. Every cell has the same model, LoRA rank, learning rate, steps, questions and completion length, and
runs in a process of its own; its line is appended when it is done, so the command goes on where it was stopped. SFT
takes answers that the teacher wrote, as many completion tokens as the on-policy cells of its rule and seed saw on
average. `--model` is what `opd-trl demo --prepare-only` writes.
"""

import argparse
import json
import shutil
import sys
import time
from argparse import Namespace
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from statistics import fmean
from typing import Any

from children import FOREVER, Children, Send
from lines import FOLDER, Deadline, Line, Results, read_lines, write_between_marks
from measure import opd_trl


RULES = ("pirate", "json", "bullets")
REFERENCES = ("before", "teacher")
ON_POLICY = ("stop_gradient_topk", "forward_kl", "jsd")
OBJECTIVES = (*ON_POLICY, "sft")
SEEDS = (0, 1, 2)
HELD_OUT = 48  # questions, of those that the rule is for and of those elsewhere
RESULTS = FOLDER / "internalise.jsonl"
RETENTION = FOLDER / "internalise_retention.jsonl"
CELL_SECONDS = 60  # to leave for a cell before any has been measured
FIELDS = ("rule", "objective", "seed")

Cell = tuple[str, str, int]
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


def matched(cell: Cell) -> list[Cell]:
    """The on-policy cells of the same rule and seed, whose tokens `sft` takes."""
    return [(cell[0], name, cell[2]) for name in ON_POLICY]


def token_budget(lines: list[Line], cell: Cell) -> int:
    """Completion tokens for `sft`: the mean of the cells that it is matched with."""
    return round(fmean(line["completion_tokens"] for line in lines if cell_of(line) in matched(cell)))


def run_cells(
    children: Children,
    results: Results,
    cells: list[Cell],
    model: str,
    output: Path,
    deadline: Deadline,
    *,
    jobs: int = 1,
    **options: Any,
) -> list[str]:
    """Train and judge the cells without a line; return what failed.

    Args:
        children: run them; `results` keeps their lines.
        cells: in the order of work; `sft` waits for those whose tokens it matches.
        model: the student.
        output: folder for adapters, answers and curves.
        deadline: after it no cell is begun.
        jobs: cells at a time.
        options: of `run_cell`: `device`, `settings`, `held_out`.
    """

    failed, longest, running = [], [], {}

    def finished() -> list[Line]:
        return [line for line in results.lines() if "rule" in line]

    def has_time() -> bool:
        return deadline.leaves(max(longest, default=CELL_SECONDS))

    def is_ready(cell: Cell) -> bool:
        return cell[1] != "sft" or not open_cells(matched(cell), finished())

    def make(cell: Cell) -> None:
        budget = token_budget(finished(), cell) if cell[1] == "sft" else None
        folder = folder_of(output, cell)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was ended
        args = Namespace(model=model, output=folder, **dict(zip(FIELDS, cell, strict=True)), **options)
        line = children.call(run_one, args, budget, name=folder.name, seconds=deadline.limit)
        longest.append(line["wall_seconds"])
        results.add(case=case_of(cell), **line)
        greedy, elsewhere = fmean(line["greedy"]), fmean(line["elsewhere"])
        print(f"{case_of(cell)}: follows {greedy:.2f}, leaks {elsewhere:.2f}, {longest[-1]:.0f} s", flush=True)

    waiting = open_cells(cells, finished())
    print(f"{len(waiting)} of {len(cells)} cells to run", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            for cell in list(waiting):
                if len(running) < jobs and has_time() and is_ready(cell):
                    waiting.remove(cell)
                    running[pool.submit(make, cell)] = cell
            if not running:
                needs = "it needs the tokens of cells that are not finished"
                return failed + [f"{case_of(cell)}: {needs}" for cell in waiting if has_time()]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                if (error := future.exception()) is not None:
                    failed.append(f"{case_of(cell)}: {error}")


def case_of(cell: Cell) -> str:
    """A cell in words."""
    return "{}, {}, seed {}".format(*cell)


def run_one(send: Send, args: Namespace, budget: int | None) -> None:
    """In a child: one cell."""
    from internalise_cell import run_cell

    send(run_cell(args, budget))


def run_retention(args: argparse.Namespace) -> None:
    """Evaluate the finished cells that have no line of it yet, after the student without adapter.

    Raises:
        ValueError: a finished cell has no adapter in `args.output`; nothing is run.
    """
    finished = {cell_of(line) for line in read_lines(args.results, FIELDS)}
    trained = [cell for cell in chosen_cells(args) if cell in finished and cell[1] not in REFERENCES]
    results = Results(args.retention_results, fields=FIELDS)
    todo = open_cells([BEFORE, *trained], results.lines())
    adapters = {cell: folder_of(args.output, cell) / "adapter" for cell in todo if cell != BEFORE}
    if missing := [path for path in adapters.values() if not (path / "adapter_config.json").is_file()]:
        raise ValueError(
            f"{missing[0]} holds no adapter, nor do {len(missing) - 1} others. Give --output of the runs."
        )
    print(f"{len(todo)} of {len(trained) + 1} evaluations to run", flush=True)
    for number, cell in enumerate(todo, start=1):
        line = evaluate(cell, args.model, adapters.get(cell), folder_of(args.output, cell) / "retention")
        results.add(**line)
        right, nats = fmean(line["tasks"]), fmean(line["nats_per_byte"])
        print(f"{number}/{len(todo)} {cell}: right {right:.2f}, nats per byte {nats:.4f}", flush=True)


def evaluate(cell: Cell, model: str, adapter: Path | None, output: Path) -> Line:
    """What an adapter has kept, by `opd-trl eval --suite retention`, which goes on where it was stopped.

    The line has right or wrong for each short question and nats per byte of each plain text, in the order of their
    ids, so that lines are compared question by question.
    """
    start, more = time.perf_counter(), ["--adapter", adapter] if adapter else []
    arguments = ("eval", "--suite", "retention", "--model", model, "--output", output, *more)
    opd_trl(*arguments, log=output.parent / "retention.log")
    samples = sorted(read_lines(output / "samples.jsonl"), key=lambda sample: sample["problem"])
    done = json.loads((output / "result.json").read_text(encoding="utf-8"))
    return {
        **dict(zip(FIELDS, cell, strict=True)),
        "tasks": [int(sample["correct"]) for sample in samples if sample["part"] == "tasks"],
        "nats_per_byte": [round(s["nats"] / s["bytes"], 5) for s in samples if s["part"] == "texts"],
        "protocol_hash": done["protocol_hash"],
        "data": done["identity"]["data"],
        "conditions": {name: done["conditions"][name] for name in ("versions", "git_commit", "machine", "date")},
        "wall_seconds": round(time.perf_counter() - start, 1),
    }


def run(args: argparse.Namespace) -> None:
    """Train and judge the cells that are chosen, one after the other on this CPU.

    Raises:
        RuntimeError: some failed.
    """
    results = Results(args.results, fields=FIELDS)
    children, forever = Children(args.output / "logs", "cpu"), Deadline.after(FOREVER / 60)
    options = {"device": "cpu", "settings": {}, "held_out": HELD_OUT}
    if failed := run_cells(children, results, chosen_cells(args), args.model, args.output, forever, **options):
        raise RuntimeError("; ".join(failed))


def show(args: argparse.Namespace) -> None:
    """Tables on the screen or on a page, and the picture."""
    from internalise_table import draw, tables

    lines = read_lines(args.results, FIELDS)
    if not lines:
        raise ValueError("there is no finished cell. Run some.")
    if args.table or args.write:
        text = tables(lines, read_lines(args.retention_results, FIELDS))
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
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        if args.retention:
            run_retention(args)
        elif args.table or args.write or args.plot:
            show(args)
        else:
            run(args)
    except (ValueError, RuntimeError) as error:
        print(f"internalise: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
