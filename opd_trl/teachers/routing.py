"""Several teachers: their names, and which of them scores which row."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor

from ..trainers.opd_config import OPDConfig


#: Column of the data set that names each row's teacher.
TEACHER_COLUMN = "teacher"


def named_teachers(teacher_model, args: OPDConfig) -> dict[str, Any]:
    """Name -> model, path, hub id or URL; a single teacher has the empty name.

    Args:
        teacher_model: what the trainer was given: one teacher, a mapping of several, or None.
        args: `teachers`, `teacher_server_url` or `teacher_model_name_or_path`.

    Raises:
        ValueError: a mapping and a field that names teachers too.
    """
    if isinstance(teacher_model, Mapping):
        if args.teachers is not None or args.teacher_server_url is not None:
            raise ValueError("teacher_model is a mapping, and the arguments name teachers too. Give one of them.")
        return dict(teacher_model)
    if teacher_model is not None:
        return {"": teacher_model}
    if args.teachers is not None:
        return dict(args.teachers)
    return {"": args.teacher_server_url or args.teacher_model_name_or_path}


def is_routed(names: Iterable[str]) -> bool:
    """Does each row name its teacher?"""
    return list(names) != [""]


def check_routes(train_dataset, eval_dataset, *, names: list[str]) -> None:
    """Check the column `teacher` of every map-style data set, where there are several teachers.

    Args:
        train_dataset, eval_dataset: as the trainer takes them.
        names: of the teachers.

    Raises:
        ValueError: no such column, or a row that names none of the teachers.
    """
    if not is_routed(names):
        return
    for set_name, dataset in named_datasets(train_dataset, eval_dataset).items():
        columns = getattr(dataset, "column_names", None)
        if columns is None:
            continue
        if TEACHER_COLUMN not in columns:
            raise ValueError(
                f"the {set_name} set has no column {TEACHER_COLUMN!r}, it has {', '.join(map(repr, columns))}. With "
                f"several teachers each row names its own: {', '.join(map(repr, names))}."
            )
        if not isinstance(dataset, IterableDataset):
            for row, name in enumerate(dataset[TEACHER_COLUMN]):
                check_route(name, names, f"row {row} of the {set_name} set")


def check_route(name: Any, names: list[str], row: str) -> None:
    """Raise ValueError for a row that names none of the teachers."""
    if name not in names:
        raise ValueError(
            f"{row} names the teacher {name!r}, and there are {', '.join(map(repr, names))}. Correct the column "
            f"{TEACHER_COLUMN!r}, or add the teacher to `teachers`."
        )


def teacher_index(rows: list[dict[str, Any]], names: list[str], device: torch.device) -> Tensor:
    """`(B,)` int64: each row's teacher, by its place in `names`."""
    for i, row in enumerate(rows):
        check_route(row.get(TEACHER_COLUMN), names, f"row {i} of this batch")
    return torch.tensor([names.index(row[TEACHER_COLUMN]) for row in rows], device=device)


def named_datasets(train_dataset, eval_dataset) -> dict[str, Any]:
    """The data sets that there are, by the name that errors call them."""
    evals = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    named = {"train": train_dataset} | {f"{name}": dataset for name, dataset in evals.items()}
    return {name: dataset for name, dataset in named.items() if dataset is not None}
