"""What a block of tokens needs to know of a teacher: its TopK ids, and its log-probability of any id asked for."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .divergences import LOG_ZERO
from .topk import top_ids


class TeacherBlock(Protocol):
    """The teacher's next-token distributions for `n` tokens."""

    top_ids: Tensor  #: (n, K) int64, its most probable ids, largest first

    def at(self, ids: Tensor | None) -> Tensor:
        """Log-probabilities `(n, k)` of `ids` `(n, k)`; `(n, V)` of the whole vocabulary where `ids` is None."""


class FromLogits(NamedTuple):
    """A distribution given by all its logits `(n, V)`."""

    logits: Tensor
    top_ids: Tensor

    @classmethod
    def of(cls, logits: Tensor, top_k: int) -> "FromLogits":
        return cls(logits, top_ids(logits, top_k))

    def at(self, ids: Tensor | None) -> Tensor:
        _, log_normalizer = normalize(self.logits, self.top_ids)
        return take(self.logits, ids) - log_normalizer


class FromTopK(NamedTuple):
    """A distribution known on some ids alone: `ids` and `log_probs` `(n, k)`, the first K of them its TopK."""

    top_ids: Tensor
    ids: Tensor
    log_probs: Tensor

    def at(self, ids: Tensor) -> Tensor:
        """As `TeacherBlock.at`; an id that is not known gets the log-probability of zero."""
        known, order = self.ids.sort(-1)
        found_at = torch.searchsorted(known, ids.contiguous()).clamp(max=known.size(-1) - 1)
        log_probs = self.log_probs.gather(-1, order).gather(-1, found_at)
        return log_probs.masked_fill(known.gather(-1, found_at) != ids, LOG_ZERO)


def normalize(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities `(n, V)` and log sum exp `(n, 1)` of logits whose TopK `ids` are known.

    The normaliser comes from the largest entry, whose probability is at least 1 / V: no further pass over the
    vocabulary. Student and teacher go through the same arithmetic, so that equal models give exactly equal numbers.
    """
    probs, first = logits.softmax(-1), ids[:, :1]
    return probs, logits.gather(-1, first) - probs.gather(-1, first).log()


def take(values: Tensor, ids: Tensor | None) -> Tensor:
    """The entries `(n, K)` of `(n, V)` at `ids`; all of them where `ids` is None."""
    return values if ids is None else values.gather(-1, ids)
