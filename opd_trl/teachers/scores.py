"""What a teacher says of a micro-batch, as the loss reads it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..losses.head import Head
from ..losses.mixture import LossTeacher
from ..losses.next_token import NextToken, TeacherTopK
from ..models.multimodal import COUNTS, MULTIMODAL_KEYS, TEACHER_IMAGES, has_images, taken
from .shared_prefix import SHARED


@dataclass(frozen=True)
class Scores:
    """Scores of those rows of a micro-batch that one teacher answers for.

    Attributes:
        rows: `(B,)` bool, or None for all; every tensor below holds these rows alone.
        is_top_k: are they log-probabilities of a TopK alone, and not whole distributions?
    """

    rows: Tensor | None
    is_top_k: ClassVar[bool] = False

    def select(self, values: Tensor) -> Tensor:
        """Its rows of a tensor `(B, ...)`."""
        return values if self.rows is None else values[self.rows]

    @property
    def head_tensors(self) -> tuple[Tensor | None, ...]:
        """What the loss reads of the teacher's head, which ZeRO-3 must gather."""
        return ()

    def is_finite(self, kept: Tensor) -> Tensor:
        """`(b,)` bool: which rows are finite at their kept positions `(b, T)`."""
        return torch.ones(len(kept), dtype=torch.bool, device=kept.device)

    def compared(self, kept: Tensor, support: str | None = None) -> Tensor:
        """The kept positions `(b, T)` whose distributions are compared on a support; the others belong to `spans`."""
        return kept

    def spans(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """For `span_loss`: number of the span and log q of its text, `(n,)` both, at `kept` positions `(b, T)`."""
        raise NotImplementedError

    def at(self, kept: Tensor, num_rows: int, excluded: Tensor | None = None) -> LossTeacher:
        """The teacher as the loss takes it.

        Args:
            kept: `(b, T)` bool: positions of the rows.
            num_rows, excluded: rows of both heads that are compared, see `Head.rows`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class HiddenStates(Scores):
    """Hidden states `(b, T, H')` and the head that reads them: every support. Wider ones are padded with zeros."""

    hidden_states: Tensor
    head: Head

    @property
    def head_tensors(self) -> tuple[Tensor | None, ...]:
        return self.head.weight, self.head.bias

    def is_finite(self, kept: Tensor) -> Tensor:
        return torch.where(kept.unsqueeze(-1), self.hidden_states, 0.0).isfinite().flatten(1).all(-1)

    def at(self, kept: Tensor, num_rows: int, excluded: Tensor | None = None) -> NextToken:
        head = self.head.rows(num_rows, excluded)
        return NextToken(self.hidden_states[..., : head.weight.size(-1)][kept], head)


@dataclass(frozen=True)
class LogProbs(Scores):
    """TopK ids and log-probabilities `(b, T, K)`, and those of the sampled tokens `(b, T)`, as a server sends them."""

    is_top_k = True
    ids: Tensor
    log_probs: Tensor
    sampled_log_probs: Tensor

    def at(self, kept: Tensor, num_rows: int, excluded: Tensor | None = None) -> TeacherTopK:
        return TeacherTopK(self.ids[kept], self.log_probs[kept], self.sampled_log_probs[kept])


# Batch entries with the scores of a teacher that scores ahead: its hidden states, or a server's log-probabilities.
HIDDEN = "teacher_hidden_states"
LOG_PROBS = ("teacher_ids", "teacher_log_probs", "teacher_sampled_log_probs")
#: Batch entry `(B,)` int64: the place of each row's teacher among several.
INDEX = "teacher_index"
# Batch entries that a teacher's forward reads: for each row, or one number for all.
TEACHER_KEYS = (
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "teacher_prompt_ids",
    "teacher_prompt_mask",
    TEACHER_IMAGES,
    SHARED,
    *MULTIMODAL_KEYS,
    *COUNTS,
)


def rows_of(batch: dict[str, Any], index: int) -> Tensor | None:
    """`(B,)` bool: the rows of the teacher at this place; None where one teacher has them all."""
    return batch[INDEX] == index if INDEX in batch else None


def select(batch: dict[str, Any], rows: Tensor | None) -> dict[str, Any]:
    """What a teacher's forward reads, for some rows, by a mask `(B,)` or numbers `(b,)`; None for all."""
    found = {key: batch[key] for key in TEACHER_KEYS if batch.get(key) is not None}
    if rows is None:
        return found
    return taken(found, rows.nonzero().flatten() if rows.dtype == torch.bool else rows)


def check_no_images(batch: dict[str, Any], what: str) -> None:
    """Refuse images where a teacher, `what`, would score the answers without them."""
    if has_images(batch):
        raise ValueError(
            f"the batch has images, and {what} reads text alone: it would score the answers without the pictures. "
            "Use a vision-language teacher in this process."
        )


def merge(entries: dict[str, Tensor], found: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Put one teacher's tensors `(b, T, ...)` into those of all `(B, T, ...)`, as wide as the widest needs."""
    merged = dict(entries)
    for name, values in found.items():
        old = entries.get(name, values[:0])
        shape = (len(rows), *values.shape[1:-1], max(values.size(-1), old.size(-1)))
        merged[name] = values.new_zeros(shape, dtype=torch.promote_types(values.dtype, old.dtype))
        merged[name][: len(old), ..., : old.size(-1)] = old
        merged[name][rows, ..., : values.size(-1)] = values.to(merged[name].dtype)
    return merged
