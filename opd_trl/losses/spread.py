"""How far teachers that read different contexts lie apart: the part of a divergence that one student cannot remove."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .divergences import DIVERGENCES, check_beta, divergence_named, expected, forward_kl, reverse_kl
from .head import chunk_size_for, chunks
from .mixture import Mixture
from .next_token import NextToken


@dataclass(frozen=True)
class Spread:
    """What `context_spread` gives for N tokens and n contexts; float32, nats, detached.

    Attributes:
        per_context: `(N, n)`, the divergence between the student and each teacher.
        irreducible: `(N,)`, what the best student without a context keeps of their mean.
        irreducible_without: `(N, n)`, the same of the n - 1 teachers that remain without one; for `jackknife`.
    """

    per_context: Tensor
    irreducible: Tensor
    irreducible_without: Tensor

    @property
    def total(self) -> Tensor:
        """`(N,)`, the mean divergence over the contexts."""
        return self.per_context.mean(-1)

    @property
    def learnable(self) -> Tensor:
        """`(N,)`, the divergence between the student and the policy that it ends at."""
        return self.total - self.irreducible


@torch.no_grad()
def context_spread(
    student: NextToken | Mixture,
    teachers: Sequence[NextToken | Mixture],
    *,
    divergence: str = "reverse_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> Spread:
    r"""Split the mean divergence to n teachers into what a single student can learn and what it cannot.

    With p the student and q_i the teacher that reads context i, over the whole vocabulary:

    - reverse KL: mean_i KL(p || q_i) = KL(p || g) - log Z, with Z = sum_v exp(mean_i log q_i(v)) and the geometric
      mean g = exp(mean_i log q_i) / Z;
    - forward KL: mean_i KL(q_i || p) = KL(a || p) + mean_i KL(q_i || a), with the arithmetic mean a = mean_i q_i.

    The student ends at g or a; the last term holds no student and stays. `mixed` is (1 - beta) forward + beta reverse;
    its irreducible part is the same mixture, and since one student cannot be a and g at once, a lower bound.

    Args:
        student: p at N positions.
        teachers: q_i at the same positions, over the same V ids.
        divergence: `reverse_kl`, `forward_kl` or `mixed`.
        beta: weight of the reverse KL in `mixed`.
        temperature: of all distributions.
        chunk_size: positions projected at once, for all teachers together n + 3 times as many rows of V numbers; by
            default from the memory budget of the loss.

    Raises:
        ValueError: no teacher, another number of positions, or another divergence: of the JSD no closed form is known.

    Source: arXiv 2605.11182, mechanism 3, gives both optima; the split follows by inserting them.

    Example:
        >>> import torch
        >>> from opd_trl.losses.head import Head
        >>> head = Head(torch.eye(2))
        >>> student = NextToken(torch.zeros(1, 2), head)
        >>> left, right = (NextToken(torch.tensor([x]).log(), head) for x in ([0.9, 0.1], [0.1, 0.9]))
        >>> spread = context_spread(student, [left, right])
        >>> spread.irreducible, spread.learnable.abs() < 1e-6  # -log(2 sqrt(0.09)); g is uniform, as the student is
        (tensor([0.5108]), tensor([True]))
    """
    check(student, teachers, divergence)
    check_beta(beta)
    if chunk_size is None:
        # The budget is for two (chunk, V) tensors.
        both = 2 * chunk_size_for(student.head.weight.size(0), student.head.weight.device)
        chunk_size = max(1, both // (len(teachers) + 3))
    forward_weight = 1 - DIVERGENCES[divergence].reverse_share(beta)
    parts = []
    for rows in chunks(len(student), chunk_size):
        log_p = student.logits(rows, temperature).log_softmax(-1)
        log_q = torch.stack([teacher.logits(rows, temperature).log_softmax(-1) for teacher in teachers])
        found = []
        for weight, split in ((forward_weight, split_forward), (1 - forward_weight, split_reverse)):
            if weight:
                found.append([weight * x for x in split(log_p, log_q)])
        parts.append([sum(x) for x in zip(*found, strict=True)])
    return Spread(*(torch.cat(part).float() for part in zip(*parts, strict=True)))


def check(student: NextToken, teachers: Sequence[NextToken | Mixture], divergence: str) -> None:
    """Raise ValueError for what cannot be split."""
    if not divergence_named(divergence).splits_by_context:
        known = [name for name, entry in DIVERGENCES.items() if entry.splits_by_context]
        raise ValueError(
            f"divergence={divergence!r} cannot be split, only {', '.join(known)}. Take reverse_kl in its place."
        )
    lengths = [len(teacher) for teacher in teachers]
    if not teachers or set(lengths) != {len(student)}:
        raise ValueError(
            f"a spread needs one teacher per context at each of the student's {len(student)} positions, got teachers "
            f"at {lengths} positions."
        )


def split_reverse(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per context `(c, n)`, irreducible `(c,)` and without each context `(c, n)`, from `(c, V)` and `(n, c, V)`."""
    per_context = torch.stack([reverse_kl(log_p, x) for x in log_q], -1)

    def surplus(kept: list[int]) -> Tensor:
        """-log Z of the geometric mean of some teachers, `(c,)`."""
        mean = log_q[kept[0]].clone()
        for i in kept[1:]:
            mean += log_q[i]
        return -(mean / len(kept)).logsumexp(-1)

    return per_context, *over_subsets(surplus, len(log_q))


def split_forward(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for the forward KL."""
    per_context = torch.stack([forward_kl(log_p, x) for x in log_q], -1)
    own = torch.stack([entropy(x.exp(), x) for x in log_q])

    def surplus(kept: list[int]) -> Tensor:
        """mean_i KL(q_i || a) of some teachers: the entropy of their mean less the mean of their entropies."""
        mean = log_q[kept[0]].exp()
        for i in kept[1:]:
            mean += log_q[i].exp()
        mean /= len(kept)
        return entropy(mean, mean.log()) - own[kept].mean(0)

    return per_context, *over_subsets(surplus, len(log_q))


def over_subsets(surplus, n: int) -> tuple[Tensor, Tensor]:
    """Of all n teachers `(c,)`, and without each of them `(c, n)`; rounding leaves nothing below 0."""
    everyone = list(range(n))
    of_all = surplus(everyone).clamp(min=0)
    if n == 1:  # it is its own mean
        return torch.zeros_like(of_all), torch.zeros_like(of_all).unsqueeze(-1)
    without = [surplus(everyone[:i] + everyone[i + 1 :]) for i in everyone]
    return of_all, torch.stack(without, -1).clamp(min=0)


def entropy(probs: Tensor, log_probs: Tensor) -> Tensor:
    """-sum_v p_v log p_v over the last dimension, with 0 log 0 = 0."""
    return -expected(probs, log_probs).sum(-1)


def pseudo_values(value: Tensor, without: Tensor) -> Tensor:
    """Jackknife pseudo-values `(..., n)`: n theta - (n - 1) theta_(-i).

    Args:
        value: `(...)`, an estimate from n draws, theta.
        without: `(..., n)`, the same without each of them, theta_(-i).
    """
    n = without.size(-1)
    return n * value.unsqueeze(-1) - (n - 1) * without


def jackknife(value: Tensor, without: Tensor) -> tuple[Tensor, Tensor]:
    r"""Remove the bias of order 1/n from an estimate of n draws, and give its standard error over them.

    With n sampled contexts the plug-in spread is too low (0 for n = 1, since one teacher is its own mean). The
    corrected estimate is the mean of the pseudo-values, and their standard deviation / sqrt(n) its standard error. Sum
    what shares the draws (the tokens of a row) first: both are linear in `value` and `without`.

    Args:
        value: `(...)`, the estimate.
        without: `(..., n)`, the same without each draw.

    Returns:
        `(...)` corrected, and `(...)` its standard error; NaN for n below 3, where a spread without one of two
        contexts is 0 whichever is left out.

    Source: Quenouille 1956; Tukey 1958; Efron and Stein 1981.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2.0, 4.0])
        >>> without = torch.stack([x[[j for j in range(3) if j != i]].var(unbiased=False) for i in range(3)])
        >>> corrected, _ = jackknife(x.var(unbiased=False), without)  # from / n to / (n - 1)
        >>> torch.isclose(corrected, x.var())
        tensor(True)
    """
    values = pseudo_values(value, without)
    n = values.size(-1)
    error = values.std(-1) / math.sqrt(n) if n > 2 else torch.full_like(values[..., 0], math.nan)
    return values.mean(-1), error
