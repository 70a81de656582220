"""A teacher of another tokenizer in this process: it reads the student's completion as text, in its own tokens."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..losses.head import Head
from ..models.forward import read_head, scatter, token_log_probs, vocabulary_rows
from ..models.sharding import is_sharded
from .base import Host
from .model_teacher import ModelTeacher
from .scores import HiddenStates, Scores
from .shared_prefix import SHARED
from .text_ids import ALONE, PLACE, SPAN, TEXT_IDS, TEXT_MASK, TEXT_SPAN, TextIds


class TextTeacher(ModelTeacher):
    """A frozen model with another tokenizer.

    Its hidden states are moved to the places of the student's tokens, and a copy of its head has the rows of the
    student's ids: the loss reads both as those of any other teacher.

    Args:
        model: the teacher; frozen here.
        shared_ids: of both tokenizers.
    """

    can_write = False
    shared_ids: TextIds

    def __init__(self, model: nn.Module, *, shared_ids: TextIds):
        super().__init__(model, shared_ids=shared_ids)
        self._head: Head | None = None

    def check_placement(self, host: Host) -> None:
        if is_sharded(host):
            raise ValueError(
                "teacher_vocabulary='text' with an engine that shards the teacher, whose head is copied in the order "
                "of the student's ids. Use ZeRO-2 or DDP, or a teacher of the student's tokenizer."
            )
        super().check_placement(host)

    def prepare(self, host: Host) -> None:
        super().prepare(host)
        self.shared_ids = replace(self.shared_ids, window=self.window)

    def score(self, host: Host, student: nn.Module, batch: dict[str, Any], rows: Tensor | None) -> Scores:
        own = {
            "prompt_ids": batch["teacher_prompt_ids"],
            "prompt_mask": batch["teacher_prompt_mask"],
            "completion_ids": batch[TEXT_IDS],
            "completion_mask": batch[TEXT_MASK],
            SHARED: batch[SHARED],
        }
        with self.scoring(student) as module, host.accelerator.autocast():
            states, head = self._forward(host, module, own)
            scored = batch[TEXT_SPAN] >= 0 if host.objective.support == "sampled" else in_longer_spans(batch)
            log_probs, _ = token_log_probs(
                states[scored],
                head.rows(vocabulary_rows(self.model.config.get_text_config())),
                batch[TEXT_IDS][scored],
                temperature=host.objective.temperature,
                chunk_size=host.objective.chunk_size,
            )
            sums = sums_by_span(scatter(log_probs, scored), batch[TEXT_SPAN])
            place = batch[PLACE].unsqueeze(-1).expand(-1, -1, states.size(-1))
            return TextScores(
                None, states.gather(1, place), self.head, batch[ALONE], batch[SPAN], of_tokens(sums, batch[SPAN])
            )

    @property
    def head(self) -> Head:
        """Its head with a row for each id of the student's: that of the same bytes."""
        if self._head is None:
            head, shared = read_head(self.model), self.shared_ids
            rows = torch.tensor([shared.same.get(i, 0) for i in range(shared.num_rows)], device=head.weight.device)
            bias = None if head.bias is None else head.bias.index_select(0, rows)
            self._head = replace(head, weight=head.weight.index_select(0, rows), bias=bias)
        return self._head


def in_longer_spans(batch: dict[str, Any]) -> Tensor:
    """`(B, S)` bool: which tokens of the teacher are in spans that are not one token on both sides."""
    alone = torch.zeros_like(batch[TEXT_IDS]).scatter_add_(1, batch[PLACE], batch[ALONE].long())
    return (batch[TEXT_SPAN] >= 0) & (alone == 0)


def sums_by_span(values: Tensor, span: Tensor) -> Tensor:
    """Sums `(B, S)` of values of tokens `(B, S)` by the number of their span `(B, S)`; those of -1 count nowhere."""
    return torch.zeros_like(values).scatter_add_(1, span.clamp(min=0), values.masked_fill(span < 0, 0.0))


def of_tokens(sums: Tensor, span: Tensor) -> Tensor:
    """The sum `(B, T)` of the span of each token, from sums `(B, S)` by number and numbers `(B, T)`."""
    return sums.gather(1, span.clamp(min=0))


@dataclass(frozen=True)
class TextScores(HiddenStates):
    """What a teacher of another tokenizer says, by the student's tokens.

    Attributes:
        alone: `(B, T)` bool: tokens that are a span by themselves on both sides, compared as distributions.
        span: `(B, T)` int64, the number of each token's span; -1: none.
        span_logps: `(B, T)`, log q of the text of its span, nats.
    """

    alone: Tensor
    span: Tensor
    span_logps: Tensor

    def compared(self, kept: Tensor, support: str | None = None) -> Tensor:
        return torch.zeros_like(kept) if support == "sampled" else kept & self.alone

    def is_finite(self, kept: Tensor) -> Tensor:
        return super().is_finite(kept) & torch.where(kept, self.span_logps, 0.0).isfinite().all(-1)

    def spans(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        number = self.span + self.span.size(1) * torch.arange(len(self.span), device=kept.device).unsqueeze(-1)
        return number[kept], self.span_logps[kept]
