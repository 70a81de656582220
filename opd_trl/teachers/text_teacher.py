"""A teacher of another tokenizer: it reads the student's completion as text, in its own tokens."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..losses.head import Head
from ..models.forward import scatter, token_log_probs
from ..models.sharding import is_sharded
from .base import Host, Teacher
from .scores import HiddenStates, Scores, check_no_images
from .shared_prefix import SHARED
from .text_ids import ALONE, PLACE, SPAN, TEXT_IDS, TEXT_MASK, TEXT_SPAN, TextIds


class TextTeacher(Teacher):
    """A frozen teacher with another tokenizer: it gives a reader prompts and completions in the reader's tokens.

    The reader's hidden states are moved to the places of the student's tokens, and a copy of its head has the rows of
    the student's ids: the loss reads both as those of any other teacher.

    Args:
        reader: a frozen teacher that gives hidden states, in this process or behind HTTP.
        shared_ids: of both tokenizers.

    Attributes:
        head: the reader's own; None until it has scored.
    """

    can_write = False
    shared_ids: TextIds

    def __init__(self, reader: Teacher, shared_ids: TextIds):
        self.reader, self.shared_ids = reader, shared_ids
        self.head: Head | None = None
        self._rows_of_student: Head | None = None

    @property
    def model(self) -> nn.Module | None:
        return self.reader.model

    @property
    def parts(self) -> tuple[Teacher, ...]:
        return self.reader.parts

    def check_placement(self, host: Host) -> None:
        if self.model is not None and is_sharded(host):
            raise ValueError(
                "teacher_vocabulary='text' with an engine that shards the teacher, whose head is copied in the order "
                "of the student's ids. Use ZeRO-2 or DDP, serve the teacher, or choose one of the student's tokenizer."
            )
        self.reader.check_placement(host)

    def prepare(self, host: Host) -> None:
        self.reader.prepare(host)
        self.window = self.reader.window
        (pair,) = self.shared_ids.pairs
        self.shared_ids = replace(self.shared_ids, pairs=(replace(pair, window=self.window),))

    def source(self, host: Host) -> str:
        return self.reader.source(host)

    def scoring(self, student: nn.Module) -> AbstractContextManager[nn.Module]:
        return self.reader.scoring(student)

    def scores_ahead(self, host: Host) -> bool:
        return self.reader.scores_ahead(host)

    def score(self, host: Host, student: nn.Module, batch: dict[str, Any], rows: Tensor | None) -> Scores:
        return self.moved(host, self.reader.score(host, student, in_own_tokens(batch), rows), batch)

    def score_ahead(self, host: Host, batch: dict[str, Any], rows: Tensor | None) -> dict[str, Tensor]:
        return self.reader.score_ahead(host, in_own_tokens(batch), rows)

    def read_ahead(self, host: Host, batch: dict[str, Any], rows: Tensor | None) -> Scores:
        return self.moved(host, self.reader.read_ahead(host, batch, rows), batch)

    @torch.no_grad()
    def moved(self, host: Host, found: HiddenStates, batch: dict[str, Any]) -> "TextScores":
        """What the reader says of its own tokens `(b, S)`, by the student's tokens `(b, T)`."""
        self.head, states = found.head, found.hidden_states[..., : found.head.weight.size(-1)]
        part = {name: found.select(batch[name]) for name in (TEXT_IDS, TEXT_SPAN, SPAN, PLACE, ALONE)}
        scored = part[TEXT_SPAN] >= 0 if host.objective.support == "sampled" else in_longer_spans(part)
        with host.accelerator.autocast():
            log_probs, _ = token_log_probs(
                states[scored],
                self.head.rows(self.shared_ids.pairs[0].teacher_rows),
                part[TEXT_IDS][scored],
                temperature=host.objective.temperature,
                chunk_size=host.objective.chunk_size,
            )
        sums = sums_by_span(scatter(log_probs, scored), part[TEXT_SPAN])
        place = part[PLACE].unsqueeze(-1).expand(-1, -1, states.size(-1))
        spans = part[ALONE], part[SPAN], of_tokens(sums, part[SPAN])
        return TextScores(found.rows, states.gather(1, place), self.head_of_student, *spans)

    @property
    def head_of_student(self) -> Head:
        """The reader's head with a row for each id of the student's: that of the same bytes."""
        if self._rows_of_student is None:
            same = self.shared_ids.pairs[0].same
            ids = [same.get(i, 0) for i in range(self.shared_ids.num_rows)]
            rows = torch.tensor(ids, device=self.head.weight.device)
            bias = None if self.head.bias is None else self.head.bias.index_select(0, rows)
            self._rows_of_student = replace(self.head, weight=self.head.weight.index_select(0, rows), bias=bias)
        return self._rows_of_student


def in_own_tokens(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as the reader takes it: the teacher's prompts and the completions in the teacher's tokens."""
    check_no_images(batch, "a teacher of another tokenizer")
    return {
        "prompt_ids": batch["teacher_prompt_ids"],
        "prompt_mask": batch["teacher_prompt_mask"],
        "completion_ids": batch[TEXT_IDS],
        "completion_mask": batch[TEXT_MASK],
        SHARED: batch[SHARED],
    }


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
