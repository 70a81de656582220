"""Hidden states and heads whose TopK is known and does not hang on rounding."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.gpu.place import Size


# Logits of the planted ids; those of all others are drawn from a normal distribution with a largest value below 5.
LEAST, MOST = 6.0, 7.5
# Rounding a logit near 8 to bfloat16 moves it by at most 1/32.
CLEARANCE = 0.25


@dataclass(frozen=True)
class Planted:
    """Arguments of the loss in float32 on the CPU; the sets of both models share a half of their ids.

    Attributes:
        student, teacher: hidden states `(N, H)` and head `(V, H)`.
        bias: `(V,)`, for either model.
        weights: `(N,)`.
        completion_ids: `(N,)`, every other one from the student's set.
    """

    student: tuple[Tensor, Tensor]
    teacher: tuple[Tensor, Tensor]
    bias: Tensor
    weights: Tensor
    completion_ids: Tensor


def plant(size: Size, *, seed: int = 0) -> Planted:
    """Draw heads, choose K ids for each token, and solve for hidden states that give these ids large logits.

    A head of bfloat16 numbers has near ties among its logits: which of two equal ids belongs to the TopK depends on
    the last bit, and the loss of another support is another number. Here the K largest logits lie far above the rest,
    so that all dtypes and devices must agree on the support.
    """
    torch.manual_seed(seed)
    n, k = size.tokens, size.top_k
    ids = torch.stack([torch.randperm(size.vocab)[: k + k // 2] for _ in range(n)])
    student, teacher = (
        with_large_logits(torch.randn(size.vocab, size.hidden), chosen) for chosen in (ids[:, :k], ids[:, k // 2 :])
    )
    completion_ids = torch.where(torch.arange(n) % 2 == 0, ids[:, 0], torch.randint(size.vocab, (n,)))
    weights = (0.5 + torch.rand(n)) / n
    return Planted(student, teacher, 0.1 * torch.randn(size.vocab), weights, completion_ids)


def with_large_logits(head: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The shortest hidden states `(N, H)` with logits from `LEAST` to `MOST` at `ids` `(N, K)`, and the head."""
    logits = LEAST + (MOST - LEAST) * torch.rand(ids.shape)
    rows = head[ids]
    hidden_states = rows.mT @ torch.linalg.solve(rows @ rows.mT, logits.unsqueeze(-1))
    return hidden_states.squeeze(-1), head


def assert_clear(logits: Tensor, top_k: int) -> None:
    """Is there a gap below the K largest logits of every row?"""
    largest = logits.topk(top_k + 1, dim=-1).values
    assert (largest[:, -2] - largest[:, -1]).min() > CLEARANCE
