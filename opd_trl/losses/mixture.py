"""Several teachers as one: the mean of their next-token distributions, formed chunk by chunk."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .divergences import check_choice
from .head import Head, block_size_for, check_rows, chunk_size_for, chunks
from .next_token import ChunkTeacher, FromLogits, NextToken, TeacherBlock, TeacherTopK, token_logps
from .objective import Objective, Tokens
from .support import top_ids


#: How distributions are averaged, as `Mixture` explains it.
Mean = Literal["arithmetic", "geometric"]
MEANS = get_args(Mean)
#: `(chunk, V)` tensors that live at a time beside a mixture: the student's logits, the mean, and those of one teacher.
LIVE_LOGITS = 3


@dataclass(frozen=True)
class Mixture:
    r"""The weighted mean of M next-token distributions q_m at N positions; a loss takes it as it takes one teacher.

    - `arithmetic`: q = sum_m w_m q_m. The forward KL to it is, up to a term without the student, the mean of the
      forward KLs to the teachers: it covers what any of them does.
    - `geometric`: q = prod_m q_m^{w_m} / Z, the softmax of sum_m w_m log q_m. The same of the reverse KL: it keeps
      what all of them do.

    Both are means of the whole distributions at the temperature of the loss, so the target, its TopK and its
    normaliser are exact for every support. No `[N, V]` tensor: a chunk of the mean is there at a time.

    Attributes:
        parts: the teachers, over the same V ids.
        weights: `(N, M)`, not negative, each row sums to 1.
        mean: which.

    Raises:
        ValueError: another mean, no teacher, or parts and weights of different sizes.

    Example:
        >>> from opd_trl.losses.head import Head
        >>> one, other = (NextToken(torch.tensor([x]).log(), Head(torch.eye(2))) for x in ([0.9, 0.1], [0.5, 0.5]))
        >>> weights = torch.tensor([[0.5, 0.5]])
        >>> [Mixture((one, other), weights, mean).logits(slice(None)).softmax(-1) for mean in MEANS]
        [tensor([[0.7000, 0.3000]]), tensor([[0.7500, 0.2500]])]
    """

    parts: tuple[NextToken, ...]
    weights: Tensor
    mean: Mean = "arithmetic"

    def __post_init__(self):
        check_choice("mean", self.mean, MEANS)
        if not self.parts or self.weights.size(-1) != len(self.parts):
            raise ValueError(f"{len(self.parts)} teachers need as many weights, got {tuple(self.weights.shape)}.")
        check_rows(len(self), **{f"teacher {i}": (len(part),) for i, part in enumerate(self.parts)})

    def __len__(self) -> int:
        return self.weights.size(0)

    @property
    def head(self) -> Head:
        """That of the first teacher; all of them lie on one device and have V rows."""
        return self.parts[0].head

    def select(self, at: Tensor) -> "Mixture":
        """Some positions, `at` `(n,)` int64 or `(N,)` bool."""
        return replace(self, parts=tuple(part.select(at) for part in self.parts), weights=self.weights[at])

    def logits(self, rows: slice, temperature: float = 1.0) -> Tensor:
        """Logits `(n, V)` of the mean at some positions, without gradients: log q, up to a constant."""
        add, total = ADD[self.mean], None
        for i, part in enumerate(self.parts):
            raw, transform = part.raw(rows).detach(), part.head.transform(temperature)
            weights = self.weights[rows, i, None].to(raw)
            is_first = total is None
            total = raw if is_first else total
            for block in chunks(raw.size(0), block_size_for(raw.size(1), raw.device)):
                found = transform.apply(raw[block])
                total[block] = add(None if is_first else total[block], found, weights[block])
            del raw, found  # before the next teacher is projected
        return total

    @torch.no_grad()
    def log_probs(
        self,
        *,
        ids: Tensor | None = None,
        top_k: int | None = None,
        temperature: float = 1.0,
        chunk_size: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities `(N, K)`, ids and entropies, as `NextToken.log_probs` gives them, without gradients."""
        weight, found = self.head.weight, []
        if chunk_size is None:
            chunk_size = chunk_size_for(weight.size(0), weight.device, tensors=LIVE_LOGITS)
        for rows in chunks(len(self), chunk_size):
            logits = self.logits(rows, temperature)
            log_probs, at = logits.log_softmax(-1), top_ids(logits, top_k) if ids is None else ids[rows]
            found.append((log_probs.gather(-1, at), at, -(log_probs.exp() * log_probs).sum(-1)))
        return tuple(torch.cat(part) for part in zip(*found, strict=True))

    def ready(self) -> "Mixture":
        """The same without gradients, the heads cast once for all chunks."""
        return replace(self, parts=tuple(part.ready() for part in self.parts))

    def token_logps(self, ids: Tensor, objective: Objective) -> Tensor:
        """Log-probabilities `(N,)` of one token each under the mean, without a gradient."""
        return token_logps(self.ready(), ids, objective)

    def as_teacher(self, student: NextToken, tokens: Tokens, objective: Objective) -> ChunkTeacher:
        """See `NextToken.as_teacher`, whose demands hold for every part."""
        top_k = min(part.check_as_teacher(student, objective) for part in self.parts)
        ready = self.ready()

        def chunk(rows: slice) -> Callable[[slice], TeacherBlock]:
            logits = ready.logits(rows, objective.temperature)
            return lambda block: FromLogits.of(logits[block], top_k)

        return chunk


def add_probabilities(total: Tensor | None, logits: Tensor, weights: Tensor) -> Tensor:
    """log(exp(total) + w softmax(logits)); `total` is None for the first. A weight of 0 adds nothing."""
    weighted = logits.log_softmax(-1) + weights.log()
    return weighted if total is None else torch.logaddexp(total, weighted)


def add_logits(total: Tensor | None, logits: Tensor, weights: Tensor) -> Tensor:
    """total + w logits: the normalisers of the parts are constants of the mean."""
    return logits * weights if total is None else total.addcmul_(logits, weights)


ADD = {"arithmetic": add_probabilities, "geometric": add_logits}
#: What a loss takes as a teacher.
LossTeacher = NextToken | Mixture | TeacherTopK
