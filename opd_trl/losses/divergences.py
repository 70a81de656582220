"""Divergences between two normalised categorical distributions, one value per token.

Every function takes log-probabilities, computes in float32 (float64 inputs stay float64) and sums over the last
dimension only. The teacher never gets a gradient.
"""

import math

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


def forward_kl_terms(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """q_v (log q_v - log p_v) for every entry v."""
    return expected(teacher_log_probs.exp(), teacher_log_probs - student_log_probs)


def reverse_kl_terms(student_log_probs: Tensor, teacher_log_probs: Tensor, *, stop_gradient: bool) -> Tensor:
    """p_v r_v with r_v = log p_v - log q_v; the ratio is a constant where `stop_gradient`."""
    log_ratio = student_log_probs - teacher_log_probs
    return expected(student_log_probs.exp(), log_ratio.detach() if stop_gradient else log_ratio)


def jsd_terms(student_log_probs: Tensor, teacher_log_probs: Tensor, *, beta: float) -> Tensor:
    """beta q_v log(q_v / m_v) + (1 - beta) p_v log(p_v / m_v) with the mixture m = beta q + (1 - beta) p."""
    student_log_probs, teacher_log_probs = student_log_probs.clamp(LOG_ZERO), teacher_log_probs.clamp(LOG_ZERO)
    mixture = torch.logaddexp(student_log_probs + math.log1p(-beta), teacher_log_probs + math.log(beta))
    return beta * forward_kl_terms(mixture, teacher_log_probs) + (1 - beta) * reverse_kl_terms(
        student_log_probs, mixture, stop_gradient=False
    )


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
    return reverse_kl_terms(*as_pair(student_log_probs, teacher_log_probs), stop_gradient=False).sum(-1)


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
    if beta == 0.0:
        return forward_kl(student_log_probs, teacher_log_probs)
    if beta == 1.0:
        return reverse_kl(student_log_probs, teacher_log_probs)
    return jsd_terms(*as_pair(student_log_probs, teacher_log_probs), beta=beta).sum(-1)
