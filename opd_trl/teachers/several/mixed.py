"""One target from several teachers: the weighted mean of their distributions, and the weights that a user gives."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ...losses.mixture import Mean, Mixture
from ...spelling import did_you_mean
from ..base import Host, Teacher
from ..scores import HIDDEN, HiddenStates, Scores
from ..vocabulary import SharedIds


#: Weights of the teachers of a row, one of them for each, as a mapping from names; or the column that holds them.
Mix = Mapping[str, float] | str
#: Batch entry `(B, M)` float32: the weights of each row, where a column holds them.
WEIGHTS = "teacher_weights"
#: How far from 1 weights may sum; float32 rounds by less.
ROUNDING = 1e-6


@dataclass(frozen=True)
class MixedScores(Scores):
    """What M teachers say of the same rows, and their weights `(b, M)`."""

    parts: tuple[HiddenStates, ...]
    weights: Tensor
    mean: Mean

    @property
    def head_tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(tensor for part in self.parts for tensor in part.head_tensors)

    def is_finite(self, kept: Tensor) -> Tensor:
        return torch.stack([part.is_finite(kept) for part in self.parts]).all(0)

    def at(self, kept: Tensor, num_rows: int, excluded: Tensor | None = None) -> Mixture:
        weights = self.weights.unsqueeze(1).expand(*kept.shape, -1)[kept]
        return Mixture(tuple(part.at(kept, num_rows, excluded) for part in self.parts), weights, self.mean)


class MixedTeacher(Teacher):
    """Several teachers as one: each scores every row, and the target is the mean of their distributions.

    Args:
        teachers: name -> teacher, frozen ones that give hidden states.
        mix: see `Mix`.
        mean: see `opd_trl.losses.mixture.Mixture`.
    """

    can_write = False

    def __init__(self, teachers: Mapping[str, Teacher], mix: Mix, mean: Mean):
        self.teachers, self.mix, self.mean = dict(teachers), mix, mean

    @property
    def parts(self) -> tuple[Teacher, ...]:
        return tuple(self.teachers.values())

    def check_placement(self, host: Host) -> None:
        for teacher in self.parts:
            teacher.check_placement(host)

    def prepare(self, host: Host) -> None:
        for teacher in self.parts:
            teacher.prepare(host)
        self.shared_ids = SharedIds.of_all(teacher.shared_ids for teacher in self.parts)
        self.window = min((x.window for x in self.parts if x.window is not None), default=None)

    def source(self, host: Host) -> str:
        shares = {name: "" if isinstance(self.mix, str) else f"{self.mix[name]:g} x " for name in self.teachers}
        named = [f"{shares[name]}{name} ({teacher.source(host)})" for name, teacher in self.teachers.items()]
        by = f", weights in the column {self.mix!r}" if isinstance(self.mix, str) else ""
        return f"{self.mean} mean of {', '.join(named)}{by}"

    def scores_ahead(self, host: Host) -> bool:
        return any(teacher.scores_ahead(host) for teacher in self.parts)

    def score_ahead(self, host: Host, batch: dict[str, Any], rows: Tensor | None) -> dict[str, Tensor]:
        ahead = {i: teacher for i, teacher in enumerate(self.parts) if teacher.scores_ahead(host)}
        found = {i: teacher.score_ahead(host, batch, rows) for i, teacher in ahead.items()}
        return {entry_of(i): scores[HIDDEN] for i, scores in found.items()}

    def read_ahead(self, host: Host, batch: dict[str, Any], rows: Tensor | None) -> Scores:
        return self.score(host, host.model_wrapped, batch, rows)

    def score(self, host: Host, student: nn.Module, batch: dict[str, Any], rows: Tensor | None) -> Scores:
        """The scores of all: those that are there already, and those of a forward of this micro-batch."""
        parts = []
        for i, teacher in enumerate(self.parts):
            if teacher.scores_ahead(host):
                parts.append(teacher.read_ahead(host, batch | {HIDDEN: batch[entry_of(i)]}, rows))
            else:
                parts.append(teacher.score(host, student, batch, rows))
        return MixedScores(rows, tuple(parts), Scores(rows).select(self.weights_of(batch)), self.mean)

    def weights_of(self, batch: dict[str, Any]) -> Tensor:
        """`(B, M)`: the weights of each row of a batch."""
        if isinstance(self.mix, str):
            return batch[WEIGHTS]
        ids = batch["completion_ids"]
        return torch.tensor([self.mix[name] for name in self.teachers], device=ids.device).expand(len(ids), -1)


def entry_of(place: int) -> str:
    """The batch entry with the scores of the teacher at this place."""
    return f"{HIDDEN}/{place}"


def row_weights(rows: list[dict[str, Any]], column: str, names: list[str], device: torch.device) -> Tensor:
    """The batch entry `WEIGHTS` of rows that hold their weights in a column."""
    for i, row in enumerate(rows):
        check_weights(row.get(column), names, f"column {column!r} of row {i} of this batch")
    return torch.tensor([[row[column].get(name) or 0.0 for name in names] for row in rows], device=device)


def check_mix(mix: Mix | None, names: Collection[str] | None) -> None:
    """Raise ValueError for `teacher_mix` without several teachers, or for weights that leave one of them out.

    Args:
        mix: as it was given; None for none.
        names: of the teachers, the empty one for a single teacher; None where they are not known yet.
    """
    if mix is None:
        return
    if names is not None and list(names) in ([], [""]):
        raise ValueError(
            f"teacher_mix={mix!r} makes one target of several teachers, and there is one. Name them in "
            "`teachers: {math: Qwen/Qwen3-8B, code: 'http://127.0.0.1:8001'}`, or leave teacher_mix out."
        )
    if isinstance(mix, str):
        return
    check_weights(mix, mix if names is None and isinstance(mix, Mapping) else names or (), "teacher_mix")
    left_out = [name for name in names or () if name not in mix]
    if left_out:
        raise ValueError(
            f"teacher_mix gives no weight to {', '.join(map(repr, left_out))}. Give one, or take the teacher out of "
            "`teachers`."
        )


def check_weights(weights: Any, names: Collection[str], where: str) -> None:
    """Raise ValueError unless these are weights of some of the teachers: numbers from 0 on that sum to 1.

    A teacher that is not named, or is given None (as data sets fill in), has the weight 0.

    Example:
        >>> check_weights({"math": 0.7, "code": 0.2}, ["math", "code"], "teacher_mix")
        Traceback (most recent call last):
        ValueError: the weights in teacher_mix sum to 0.9. Make them sum to 1, e.g. {'math': 0.5, 'code': 0.5}.
    """
    example = f"e.g. {dict.fromkeys(names, round(1 / max(1, len(names)), 3))}"
    if not isinstance(weights, Mapping):
        raise ValueError(f"{where} must map teachers to weights, got {weights!r}. Write {example}.")
    given = {name: weight for name, weight in weights.items() if weight is not None}
    for name, weight in given.items():
        if name not in names:
            nearest = did_you_mean(name, names).capitalize()
            raise ValueError(
                f"{where} gives a weight to {name!r}, and the teachers are {', '.join(map(repr, names))}. "
                f"{nearest or 'Correct the name, or add the teacher to `teachers`.'}"
            )
        if not isinstance(weight, Real) or isinstance(weight, bool) or not weight >= 0:  # nor is NaN
            raise ValueError(
                f"{where} gives {name!r} the weight {weight!r}. Give a number from 0 to 1; all of them sum to 1."
            )
    total = math.fsum(given.values())
    if abs(total - 1) > ROUNDING:
        raise ValueError(f"the weights in {where} sum to {total:g}. Make them sum to 1, {example}.")
