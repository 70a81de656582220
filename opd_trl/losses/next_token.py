"""Next-token distributions: whole ones, through an LM head, and those of a teacher that is known on a TopK alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .divergences import LOG_ZERO, check_choice
from .head import (
    Head,
    HeadGradients,
    LogitGradient,
    block_size_for,
    check_rows,
    chunk_size_for,
    chunks,
    in_compute_dtype,
    project,
)
from .objective import Objective, Tokens
from .support import KNOWN_SUPPORTS, check_top_k, top_ids


class TeacherBlock(Protocol):
    """The teacher's next-token distributions for a block of `n` tokens."""

    top_ids: Tensor  #: (n, K) int64, its most probable ids, largest first

    def at(self, ids: Tensor | None) -> Tensor:
        """Log-probabilities `(n, k)` of `ids` `(n, k)`; `(n, V)` of the whole vocabulary where `ids` is None."""


#: Rows of a chunk -> rows of a block inside it -> what the teacher says of that block.
ChunkTeacher = Callable[[slice], Callable[[slice], TeacherBlock]]


@dataclass(frozen=True)
class NextToken:
    """A model's next-token distributions at N positions, softmax of the head's logits of its hidden states.

    Attributes:
        hidden_states: `(N, H)`.
        head: what reads them.
    """

    hidden_states: Tensor
    head: Head

    def __len__(self) -> int:
        return self.hidden_states.size(0)

    def select(self, at: Tensor) -> "NextToken":
        """Some positions, `at` `(n,)` int64 or `(N,)` bool."""
        return replace(self, hidden_states=self.hidden_states[at])

    def raw(self, rows: slice) -> Tensor:
        """Raw outputs `(n, V)` of the head at some positions."""
        return project(self.hidden_states[rows], in_compute_dtype(self.head.weight), self.head.bias)

    def logits(self, rows: slice, temperature: float = 1.0) -> Tensor:
        """Logits `(n, V)` at some positions."""
        return self.head.transform(temperature).apply(self.raw(rows))

    def log_probs(
        self,
        *,
        ids: Tensor | None = None,
        top_k: int | None = None,
        temperature: float = 1.0,
        chunk_size: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities `(N, K)` of `ids` or of its own TopK, these ids, and entropies `(N,)`; differentiable.

        `opd_trl.losses.chunked_support_log_probs` explains the options and what is refused.
        """
        weight, bias = self.head.weight, self.head.bias
        if (ids is None) == (top_k is None):
            raise ValueError("give exactly one of ids (which tokens to score) and top_k (the K most probable ones).")
        if top_k is not None:
            check_top_k(top_k, self.head.num_ids)
        else:
            check_rows(len(self), ids=ids.shape[:-1])
        if chunk_size is None:
            chunk_size = chunk_size_for(weight.size(0), weight.device)
        transform = self.head.transform(temperature)
        return RecomputedLogProbs.apply(self.hidden_states, weight, bias, ids, top_k, transform, chunk_size)

    def token_logps(self, ids: Tensor, objective: Objective) -> Tensor:
        """Log-probabilities `(N,)` of one token each at the objective's temperature, without a gradient."""
        return token_logps(self.ready(), ids, objective)

    def as_teacher(self, student: "NextToken", tokens: Tokens, objective: Objective) -> ChunkTeacher:
        """Its distributions as the loss of a student reads them, without gradients.

        Raises:
            ValueError: heads of different vocabularies, other positions, a K that the vocabulary does not have.
        """
        top_k = self.check_as_teacher(student, objective)
        ready, transform = self.ready(), self.head.transform(objective.temperature)

        def chunk(rows: slice) -> Callable[[slice], TeacherBlock]:
            raw = ready.raw(rows)
            return lambda block: FromLogits.of(transform.apply(raw[block]), top_k)

        return chunk

    def ready(self) -> "NextToken":
        """The same without gradients, its head cast once for all chunks."""
        return replace(self, head=replace(self.head, weight=in_compute_dtype(self.head.weight.detach())))

    def check_as_teacher(self, student: "NextToken", objective: Objective) -> int:
        """How many of its most probable ids the loss of a student reads; raises what `as_teacher` says."""
        vocab_size, top_k = self.head.weight.size(0), objective.top_k
        if student.head.weight.size(0) != vocab_size:
            raise ValueError(
                f"student and teacher heads must have the same vocabulary, got {student.head.weight.size(0)} and "
                f"{vocab_size} rows. Cut both to the rows that the tokenizer uses."
            )
        if objective.support in ("full", "sampled"):  # K serves the overlap figure alone
            top_k = min(top_k, self.head.num_ids)
        check_top_k(top_k, self.head.num_ids)
        check_rows(len(student), teacher_hidden_states=self.hidden_states.shape[:-1])
        return top_k


@dataclass(frozen=True)
class TeacherTopK:
    """A teacher that is known by log-probabilities alone, as a server sends them.

    Attributes:
        ids: `(N, K)` int64, its K most probable ids at each position, in any order, each once.
        log_probs: `(N, K)` of these, nats, normalised over the full vocabulary at the loss temperature.
        sampled_log_probs: `(N,)`, those of the sampled tokens; None where nobody has said.
    """

    ids: Tensor
    log_probs: Tensor
    sampled_log_probs: Tensor | None = None

    def token_logps(self, ids: Tensor, objective: Objective) -> Tensor:
        """Log-probabilities `(N,)` of the sampled tokens, as they were sent; raises ValueError where they were not."""
        if self.sampled_log_probs is None:
            raise ValueError("weights of tokens need completion_log_probs, the teacher's of the sampled tokens.")
        return self.sampled_log_probs

    def as_teacher(self, student: NextToken, tokens: Tokens, objective: Objective) -> ChunkTeacher:
        """See `NextToken.as_teacher`; the K of both models is that of `ids`.

        Raises:
            ValueError: an objective that reads ids which nobody has scored, shapes that do not fit.
        """
        check_choice("support", objective.support, KNOWN_SUPPORTS)
        if objective.reads_sampled and (tokens.ids is None or self.sampled_log_probs is None):
            raise ValueError(
                "support='sampled' or tail='sample' needs completion_ids and completion_log_probs: the (N,) sampled "
                "tokens and the teacher's log-probabilities of them."
            )
        if objective.baseline is not None:
            raise ValueError(
                f"baseline={objective.baseline!r} reads the teacher on the student's ids, and only its own TopK is "
                "known. Leave it out."
            )
        if self.ids.shape != self.log_probs.shape:
            raise ValueError(
                f"teacher_ids and teacher_log_probs must have one shape (N, K), got {tuple(self.ids.shape)} and "
                f"{tuple(self.log_probs.shape)}."
            )
        check_rows(len(student), teacher_ids=self.ids.shape[:-1])
        order = self.log_probs.detach().argsort(dim=-1, descending=True)
        top_ids, log_probs = (x.gather(-1, order) for x in (self.ids, self.log_probs.detach()))
        ids = top_ids
        if self.sampled_log_probs is not None:
            check_rows(len(student), completion_log_probs=self.sampled_log_probs.shape)
        if tokens.ids is not None and self.sampled_log_probs is not None:
            ids = torch.cat([ids, tokens.ids.unsqueeze(-1)], dim=-1)
            log_probs = torch.cat([log_probs, self.sampled_log_probs.detach().unsqueeze(-1)], dim=-1)
        known = FromTopK(top_ids, ids, log_probs)
        return lambda rows: known.rows(rows).rows


class FromLogits(NamedTuple):
    """A `TeacherBlock` of which all logits `(n, V)` are known."""

    logits: Tensor
    top_ids: Tensor

    @classmethod
    def of(cls, logits: Tensor, top_k: int) -> "FromLogits":
        """With the TopK of the logits."""
        return cls(logits, top_ids(logits, top_k))

    def at(self, ids: Tensor | None) -> Tensor:
        """Log-probabilities of ids, as `TeacherBlock.at` explains."""
        _, log_normalizer = normalize(self.logits, self.top_ids)
        return take(self.logits, ids) - log_normalizer


class FromTopK(NamedTuple):
    """A `TeacherBlock` that is known on some ids: `ids` and `log_probs` `(n, k)`, the first K of them its TopK."""

    top_ids: Tensor
    ids: Tensor
    log_probs: Tensor

    def rows(self, rows: slice) -> "FromTopK":
        """The same for some of the tokens, a slice or `(N,)` bool."""
        return FromTopK(*(x[rows] for x in self))

    def at(self, ids: Tensor) -> Tensor:
        """See `TeacherBlock.at`; an id that is not known gets the log-probability of zero."""
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


def token_logps(model, ids: Tensor, objective: Objective) -> Tensor:
    """Log-probabilities `(N,)` of `ids` `(N,)` under a model that has `logits(rows, temperature)`: nothing else.

    No gradient, and no tensor of the size of a chunk beside its logits, so that it costs little more than the product.
    """
    found, device, vocab_size = [], model.head.weight.device, model.head.weight.size(0)
    chunk_size = objective.chunk_size or chunk_size_for(vocab_size, device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for rows in chunks(len(model), chunk_size):
            logits, at = model.logits(rows, objective.temperature), ids[rows].unsqueeze(-1)
            for block in chunks(len(logits), block_size_for(vocab_size, device)):
                normalizer = logits[block].logsumexp(-1, keepdim=True)
                found.append((logits[block].gather(-1, at[block]) - normalizer).squeeze(-1))
    return torch.cat(found)


class RecomputedLogProbs(torch.autograd.Function):
    """The chunks of `NextToken.log_probs`; backward projects them again, so that no `(N, V)` tensor is kept."""

    @staticmethod
    def forward(ctx, hidden_states, weight, bias, ids, top_k, transform, chunk_size):
        compute_weight = in_compute_dtype(weight)
        parts = []
        with torch.autocast(weight.device.type, enabled=False):
            for rows in chunks(hidden_states.size(0), chunk_size):
                logits = transform.apply(project(hidden_states[rows], compute_weight, bias))
                log_probs = logits.log_softmax(-1)
                at = top_ids(logits, top_k) if ids is None else ids[rows]
                parts.append((log_probs.gather(-1, at), at, -(log_probs.exp() * log_probs).sum(-1)))
        log_probs, ids, entropy = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(hidden_states, weight, bias, ids, entropy)
        ctx.transform, ctx.chunk_size, ctx.compute_dtype = transform, chunk_size, compute_weight.dtype
        ctx.mark_non_differentiable(ids)
        return log_probs, ids, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_log_probs, _, grad_entropy):
        """dL/dz_j = g_j 1_S(j) - p_j sum_k g_k - e p_j (log p_j + entropy), with e = dL/dentropy."""
        hidden_states, weight, bias, ids, entropy = ctx.saved_tensors
        gradients = HeadGradients((hidden_states, weight, bias), ctx.needs_input_grad[:3])
        weight = weight.to(ctx.compute_dtype)
        with torch.autocast(weight.device.type, enabled=False):
            for rows in chunks(hidden_states.size(0), ctx.chunk_size):
                logits = ctx.transform.apply(project(hidden_states[rows], weight, bias))
                log_probs = logits.log_softmax(-1)
                by_entropy = (log_probs + entropy[rows, None]).mul_(grad_entropy[rows, None])
                gradient = log_probs.exp_().mul_(by_entropy.add_(grad_log_probs[rows].sum(-1, keepdim=True))).neg_()
                gradient.scatter_add_(-1, ids[rows], grad_log_probs[rows])
                gradients.add(rows, LogitGradient(ctx.transform.chain(gradient, logits)), hidden_states[rows], weight)
        return *gradients.in_dtypes_of_inputs(), None, None, None, None
