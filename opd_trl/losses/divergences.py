"""The divergences between two distributions over the same tokens, and what the package knows of each by its name.

Every function takes log-probabilities, computes in float32 (float64 inputs stay float64) and gives one value per
token. The teacher never gets a gradient. A further divergence is one more function of its terms and one more entry
of `DIVERGENCES`.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor


# log of a probability that is zero for every purpose; finite, so that no gradient becomes inf - inf.
LOG_ZERO = -1e30


def as_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both tensors in one dtype of at least float32, the teacher detached."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {tuple(student.shape)} and {tuple(teacher.shape)}. "
            "Gather both on the same support first."
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def expected(weight: Tensor, log_ratio: Tensor) -> Tensor:
    """weight * log_ratio elementwise, with 0 * inf = 0 as in the definition of a divergence."""
    return weight * torch.where(weight > 0, log_ratio, 0.0)


# The terms of each divergence: what is summed over the entries v, of the shape of the inputs. All take the same
# options, and use those that they have.


def reverse_kl_terms(student: Tensor, teacher: Tensor, *, beta: float = 0.5, stop_gradient: bool = False) -> Tensor:
    """p_v r_v with r_v = log p_v - log q_v; the ratio is a constant where `stop_gradient`."""
    log_ratio = student - teacher
    return expected(student.exp(), log_ratio.detach() if stop_gradient else log_ratio)


def forward_kl_terms(student: Tensor, teacher: Tensor, *, beta: float = 0.5, stop_gradient: bool = False) -> Tensor:
    """q_v (log q_v - log p_v)."""
    return expected(teacher.exp(), teacher - student)


def jsd_terms(student: Tensor, teacher: Tensor, *, beta: float, stop_gradient: bool = False) -> Tensor:
    """beta q_v log(q_v / m_v) + (1 - beta) p_v log(p_v / m_v) with the mixture m = beta q + (1 - beta) p.

    At 0 and 1, where the formula vanishes, the forward and the reverse KL.
    """
    if beta == 0.0:
        return forward_kl_terms(student, teacher)
    if beta == 1.0:
        return reverse_kl_terms(student, teacher, stop_gradient=stop_gradient)
    student, teacher = student.clamp(LOG_ZERO), teacher.clamp(LOG_ZERO)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * forward_kl_terms(mixture, teacher) + (1 - beta) * reverse_kl_terms(student, mixture)


def mixed_terms(student: Tensor, teacher: Tensor, *, beta: float, stop_gradient: bool = False) -> Tensor:
    """(1 - beta) q_v (log q_v - log p_v) + beta p_v r_v."""
    forward = forward_kl_terms(student, teacher)
    return (1 - beta) * forward + beta * reverse_kl_terms(student, teacher, stop_gradient=stop_gradient)


def hellinger_terms(student: Tensor, teacher: Tensor, *, beta: float = 0.5, stop_gradient: bool = False) -> Tensor:
    """(sqrt p_v - sqrt q_v)^2 / 2."""
    return ((student / 2).exp() - (teacher / 2).exp()).square() / 2


@dataclass(frozen=True)
class Divergence:
    """What the package asks of a divergence.

    Attributes:
        title: as people say it.
        terms: its summands, from log p and log q `(..., K)`, `beta` and `stop_gradient`.
        reverse_share: at `beta`, the share w where it is w reverse KL + (1 - w) forward KL; None where it is neither
            of them nor a sum of both. Such a divergence must rest at the teacher without its tail (`tail_bias` 0).
        stop_gradient_acts: does `stop_gradient` change its gradient? Then the forms with and without are two losses.
        finds_missing_modes: does it raise a token that the teacher likes and the student almost never gives? Where
            every term of the gradient carries the student's own probability of its token, it does not.
        splits_by_context: is it known which student comes nearest to several teachers at once (`context_spread`)?
    """

    title: str
    terms: Callable[..., Tensor]
    reverse_share: Callable[[float], float | None] = lambda beta: None
    stop_gradient_acts: bool = False
    finds_missing_modes: bool = False
    splits_by_context: bool = False

    def tail_bias(self, *, beta: float, stop_gradient: bool) -> float:
        """The factor c of the gradient c p_j (1_S(j) - sum_S p) that a dropped tail leaves where p = q.

        1 for the plain reverse KL, 0 with its stop-gradient, -1 for the forward KL.
        """
        share = self.reverse_share(beta)
        return 0.0 if share is None else share * (not stop_gradient) - (1 - share)


#: Name in a configuration -> divergence.
DIVERGENCES = {
    "reverse_kl": Divergence(
        "reverse KL", reverse_kl_terms, lambda beta: 1.0, stop_gradient_acts=True, splits_by_context=True
    ),
    "forward_kl": Divergence(
        "forward KL", forward_kl_terms, lambda beta: 0.0, finds_missing_modes=True, splits_by_context=True
    ),
    "jsd": Divergence("JSD", jsd_terms, lambda beta: beta if beta in (0.0, 1.0) else None),
    "hellinger": Divergence("squared Hellinger distance", hellinger_terms),
    "mixed": Divergence(
        "mixed divergence",
        mixed_terms,
        lambda beta: beta,
        stop_gradient_acts=True,
        finds_missing_modes=True,
        splits_by_context=True,
    ),
}


def divergence_named(name: str) -> Divergence:
    """The entry of `DIVERGENCES`; ValueError for a name that is not there.

    >>> divergence_named("jsd").title
    'JSD'
    """
    check_choice("divergence", name, DIVERGENCES)
    return DIVERGENCES[name]


def check_choice(option: str, value: str | None, choices: Collection[str | None]) -> None:
    """Raise ValueError unless the value of an option is one of its choices."""
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_beta(beta: float) -> None:
    """Raise ValueError unless 0 <= beta <= 1."""
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta must lie in [0, 1], got {beta}. 0 is the forward KL, 1 the reverse KL.")


def forward_kl(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """Forward KL, KL(teacher || student) = sum_v q_v (log q_v - log p_v).

    It covers the teacher's modes: a token that the teacher likes and the student never samples has a large gradient
    p_j - q_j.

    Args:
        student_log_probs: `(..., V)`, log p, normalised over the last dimension; carries the gradient.
        teacher_log_probs: `(..., V)`, log q, normalised over the last dimension; detached.

    Returns:
        `(...)`, nats per token, float32 (float64 for float64 inputs), neither masked nor reduced.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
        >>> round(forward_kl(p, q).item(), 4)
        0.1308
    """
    return forward_kl_terms(*as_pair(student_log_probs, teacher_log_probs)).sum(-1)


def reverse_kl(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """Reverse KL, KL(student || teacher) = sum_v p_v (log p_v - log q_v).

    It sharpens on modes that the student already has. Its gradient in the logits is p_j (r_j - sum_v p_v r_v) with
    r = log p - log q.

    Args:
        student_log_probs: `(..., V)`, log p, normalised over the last dimension; carries the gradient.
        teacher_log_probs: `(..., V)`, log q, normalised over the last dimension; detached.

    Returns:
        `(...)`, nats per token, float32 (float64 for float64 inputs), neither masked nor reduced.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
        >>> round(reverse_kl(p, q).item(), 4)
        0.1438
    """
    return reverse_kl_terms(*as_pair(student_log_probs, teacher_log_probs)).sum(-1)


def generalized_jsd(student_log_probs: Tensor, teacher_log_probs: Tensor, *, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence, beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p.

    The end points are defined as the divergences that they stand for: `beta=0` is the forward KL and `beta=1` the
    reverse KL, as in GKD (the formula itself vanishes there).

    Args:
        student_log_probs: `(..., V)`, log p, normalised over the last dimension; carries the gradient.
        teacher_log_probs: `(..., V)`, log q, normalised over the last dimension; detached.
        beta: weight of the teacher in the mixture, in [0, 1].

    Returns:
        `(...)`, nats per token, float32 (float64 for float64 inputs), neither masked nor reduced.

    Raises:
        ValueError: the shapes differ or `beta` lies outside [0, 1].

    Source: Agarwal et al., "On-Policy Distillation of Language Models", arXiv 2306.13649, eq. 1.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
        >>> round(generalized_jsd(p, q, beta=0.5).item(), 4)  # log 2, its largest value
        0.6931
    """
    check_beta(beta)
    return jsd_terms(*as_pair(student_log_probs, teacher_log_probs), beta=beta).sum(-1)
