"""One teacher or several: their names, which of them scores which row, and the scores of all of them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn

from ...models.sharding import is_sharded
from ..base import Host, Teacher
from ..scores import INDEX, Scores, merge, rows_of
from ..vocabulary import SharedIds
from .mixed import WEIGHTS, Mix, check_weights, row_weights


DataSet = Dataset | IterableDataset
#: Column of the data set that names each row's teacher.
TEACHER_COLUMN = "teacher"
#: Batch entries that say which teachers count for a row.
ROW_ENTRIES = (INDEX, WEIGHTS)


def named_teachers(
    given: Any,
    *,
    teachers: Mapping[str, str] | None,
    teacher_server_url: str | None,
    teacher_model_name_or_path: str | None,
) -> dict[str, Any]:
    """Name -> model, path, hub id or URL; a single teacher has the empty name.

    Args:
        given: what the trainer was given: one teacher, a mapping of several, or None.
        teachers, teacher_server_url, teacher_model_name_or_path: what its arguments name.

    Raises:
        ValueError: a mapping and a field that names teachers too.
    """
    if isinstance(given, Mapping):
        if teachers is not None or teacher_server_url is not None:
            raise ValueError("teacher_model is a mapping, and the arguments name teachers too. Give one of them.")
        return dict(given)
    if given is not None:
        path = getattr(getattr(given, "config", None), "_name_or_path", given)
        if teachers or teacher_server_url or teacher_model_name_or_path not in (None, path):
            raise ValueError("teacher_model is given, and the arguments name another teacher too. Give one of them.")
        return {"": given}
    if teachers is not None:
        return dict(teachers)
    return {"": teacher_server_url or teacher_model_name_or_path}


def is_routed(names: Iterable[str]) -> bool:
    """Does each row name its teacher?"""
    return list(names) != [""]


def check_routes(train_dataset, eval_dataset, *, names: list[str], mix: Mix | None = None) -> None:
    """Check the column of every map-style data set that says which of several teachers count for a row.

    Args:
        train_dataset, eval_dataset: as the trainer takes them.
        names: of the teachers.
        mix: where all of them are one target; None: the column `teacher` names one for each row.

    Raises:
        ValueError: no such column, or a row that names none of the teachers or gives no weights.
    """
    if not is_routed(names) or isinstance(mix, Mapping):
        return
    column = TEACHER_COLUMN if mix is None else mix
    says = "each row names its own" if mix is None else "each row maps them to weights"
    for set_name, dataset in named_datasets(train_dataset, eval_dataset).items():
        columns = getattr(dataset, "column_names", None)
        if columns is None:
            continue
        if column not in columns:
            raise ValueError(
                f"the {set_name} set has no column {column!r}, it has {', '.join(map(repr, columns))}. With "
                f"several teachers {says}: {', '.join(map(repr, names))}."
            )
        if not isinstance(dataset, IterableDataset):
            for row, value in enumerate(dataset[column]):
                where = f"row {row} of the {set_name} set"
                if mix is None:
                    check_route(value, names, where)
                else:
                    check_weights(value, names, f"column {column!r} of {where}")


def check_route(name: Any, names: list[str], row: str) -> None:
    """Raise ValueError for a row that names none of the teachers."""
    if name not in names:
        raise ValueError(
            f"{row} names the teacher {name!r}, and there are {', '.join(map(repr, names))}. Correct the column "
            f"{TEACHER_COLUMN!r}, or add the teacher to `teachers`."
        )


def row_entries(
    rows: list[dict[str, Any]], teachers: Mapping[str, Teacher], mix: Mix | None, device: torch.device
) -> dict[str, Tensor]:
    """The entries of a batch that say which of several teachers count for its rows; none where all count alike."""
    if is_routed(teachers):
        return {INDEX: torch.tensor(places(rows, list(teachers)), device=device)}
    if isinstance(mix, str):
        return {WEIGHTS: row_weights(rows, mix, list(teachers[""].teachers), device)}
    return {}


def places(rows: list[dict[str, Any]], names: list[str]) -> list[int]:
    """Each row's teacher, by its place in `names`."""
    if not is_routed(names):
        return [0] * len(rows)
    for i, row in enumerate(rows):
        check_route(row.get(TEACHER_COLUMN), names, f"row {i} of this batch")
    return [names.index(row[TEACHER_COLUMN]) for row in rows]


def named_datasets(train_dataset, eval_dataset) -> dict[str, Any]:
    """The data sets that there are, by the name that errors call them."""
    evals = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    named = {"train": train_dataset} | {f"{name}": dataset for name, dataset in evals.items()}
    return {name: dataset for name, dataset in named.items() if dataset is not None}


def prepare(host: Host, teachers: Mapping[str, Teacher]) -> SharedIds:
    """Check where the teachers lie and get them ready; return the ids that the student shares with all of them.

    Raises:
        ValueError: what a kind of teacher cannot do under this engine; before any of them is handed to it.
    """
    for teacher in teachers.values():
        teacher.check_placement(host)
    for teacher in teachers.values():
        teacher.prepare(host)
    shared = SharedIds.of_all(teacher.shared_ids for teacher in teachers.values())
    for name, teacher in teachers.items():
        if shared.notes and not teacher.gives_hidden_states:
            raise ValueError(
                f"teacher {name!r} gives log-probabilities over its whole vocabulary, and the teachers share a part "
                "of it. Serve it with `opd-trl serve-teacher`, or choose teachers of the student's vocabulary."
            )
    return shared


def score_ahead(host: Host, teachers: Mapping[str, Teacher], batch: dict[str, Any]) -> dict[str, Tensor]:
    """Scores of a whole generation batch as entries of it, by the teachers that do not wait for micro-batches."""
    entries: dict[str, Tensor] = {}
    batch = host.shared_ids.readable(batch)
    for index, teacher in enumerate(teachers.values()):
        rows = rows_of(batch, index)
        if not teacher.scores_ahead(host) or has_no_part(host, rows):
            continue
        found = teacher.score_ahead(host, batch, rows)
        entries = found if rows is None else merge(entries, found, rows)
    return entries


def score(host: Host, teachers: Mapping[str, Teacher], student: nn.Module, batch: dict[str, Any]) -> dict[str, Scores]:
    """What each teacher says of a micro-batch; teachers without a row in it are left out.

    `student` is the student as the engine wrapped it.
    """
    scores: dict[str, Scores] = {}
    batch = host.shared_ids.readable(batch)
    for index, (name, teacher) in enumerate(teachers.items()):
        rows = rows_of(batch, index)
        if has_no_part(host, rows):
            continue
        if teacher.scores_ahead(host):
            scores[name] = teacher.read_ahead(host, batch, rows)
            continue
        scores[name] = teacher.score(host, student, batch, rows)
    return scores


def has_no_part(host: Host, rows: Tensor | None) -> bool:
    """Can a teacher be left out? One that is sharded cannot, since other ranks may need this rank's share of it."""
    return rows is not None and not rows.any() and not is_sharded(host)
