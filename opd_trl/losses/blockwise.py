"""The loss of a chunk of student logits, worked off in blocks of rows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .fused import FusedHeadLoss
from .head import LogitGradient, LogitTransform, block_size_for, check_rows, chunk_size_for, chunks
from .objective import Objective, TeacherBlock, Tokens


#: Figures per token, in the order in which an `Objective` returns them.
STATS = ("per_token_divergence", "entropy", "student_mass", "teacher_mass", "overlap")
#: Those of the sampled tokens behind them, where these are given.
SAMPLED_STATS = ("sampled_log_ratio", "teacher_rank")

#: Rows of a chunk -> what the teacher says of a block of them.
ChunkTeacher = Callable[[slice], Callable[[slice], TeacherBlock]]


@dataclass(frozen=True)
class BlockwiseLoss:
    """The loss of one chunk of student logits: a `ChunkLoss`.

    Two `(chunk, V)` tensors live at a time, the logits of student and teacher; a dense gradient overwrites the
    student's. What is computed element by element has the size of a block, which on a CPU stays in its caches.
    """

    objective: Objective
    transform: LogitTransform
    teacher: ChunkTeacher
    tokens: Tokens
    hidden_size: int

    def total(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None, *, chunk_size: int | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and statistics of all tokens, from the student's hidden states `(N, H)` and its head."""
        self.objective.check(self.tokens)
        names = ("token_weights", "completion_ids", "sampling_logps", "reference_logps")
        shapes = {name: x.shape for name, x in zip(names, self.tokens, strict=True) if x is not None}
        check_rows(hidden_states.size(0), **shapes)
        if chunk_size is None:
            chunk_size = chunk_size_for(weight.size(0), weight.device)
        loss, *stats = FusedHeadLoss.apply(hidden_states, weight, bias, self, chunk_size, torch.is_grad_enabled())
        names = STATS if self.tokens.ids is None else (*STATS, *SAMPLED_STATS)
        return loss, dict(zip(names, stats, strict=True))

    def __call__(self, raw: Tensor, rows: slice, want_gradient: bool):
        """See `ChunkLoss`; `raw` is overwritten."""
        teacher = self.teacher(rows)
        tokens = self.tokens.rows(rows)
        losses, stats, sparse = [], [], []
        for block in chunks(raw.size(0), block_size_for(raw.size(1), raw.device)):
            logits = self.transform.apply(raw[block])
            loss, gradient, block_stats = self.objective(
                logits,
                teacher(block),
                tokens.rows(block),
                want_gradient=want_gradient,
                hidden_size=self.hidden_size,
            )
            losses.append(loss)
            stats.append(block_stats)
            if gradient is not None:
                at = logits if gradient.ids is None else logits.gather(-1, gradient.ids)
                values = self.transform.chain(gradient.values, at)
                if gradient.ids is None:
                    raw[block] = values
                else:
                    sparse.append((values, gradient.ids))
        gradient = None
        if want_gradient:
            gradient = LogitGradient(*map(torch.cat, zip(*sparse, strict=True))) if sparse else LogitGradient(raw)
        return torch.stack(losses).sum(), gradient, tuple(map(torch.cat, zip(*stats, strict=True)))
