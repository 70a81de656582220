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


def importance_weight(student_logps: Tensor, sampling_logps: Tensor, *, cap: float) -> Tensor:
    """min(p_y / mu_y, cap): corrects for tokens that were sampled from mu, an older or differently rounded student.

    Args:
        student_logps: `(...)`, log p_y of the sampled tokens, nats; no gradient flows through the ratio.
        sampling_logps: `(...)`, log mu_y at sampling. NaN where it is unknown: that token has weight 1.
        cap: the largest weight; it bounds the variance and biases towards tokens that mu sampled too often.

    Returns:
        `(...)`, detached.

    Source: truncated importance sampling, as in SDFT (arXiv 2601.19897) and SDPO (arXiv 2601.20802) with a cap of 2.

    Example:
        >>> import torch
        >>> p, mu = torch.tensor([0.2, 0.6, 0.5]), torch.tensor([0.4, 0.1, float("nan")])
        >>> importance_weight(p.log(), mu.log(), cap=2.0)
        tensor([0.5000, 2.0000, 1.0000])
    """
    log_ratio = student_logps.detach() - sampling_logps
    return log_ratio.nan_to_num(nan=0.0).exp().clamp(max=cap)


def sampled_token_loss(
    student_logps: Tensor, teacher_logps: Tensor, *, baseline: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Policy gradient on the sampled token, -sg(w (log q_y - log p_y - baseline)) log p_y.

    Without options this is sg(log p_y - log q_y) log p_y. Its gradient in the logits is sg(r_y) (1[j=y] - p_j); the
    expectation over y ~ p is the gradient of the full reverse KL. The value itself is not a divergence: report
    log p_y - log q_y instead, whose own backpropagation would be noise of zero mean.

    Args:
        student_logps: `(...)`, log p_y of the sampled token, normalised over the full vocabulary; carries the
            gradient.
        teacher_logps: `(...)`, log q_y of the same token; detached.
        baseline: `(...)`, subtracted from the advantage log q_y - log p_y (nats); vOPD uses minus the reverse KL.
            It changes the variance, not the expectation. Detached.
        weight: `(...)`, e.g. an importance ratio. Detached.

    Returns:
        `(...)`, float32 (float64 for float64 inputs), neither masked nor reduced.

    Raises:
        ValueError: the shapes of student and teacher differ.

    Source: arXiv 2605.11182 (the paper's sampled-token form); baseline as in vOPD, arXiv 2605.07865.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([-2.0, -1.0], requires_grad=True), torch.tensor([-1.0, -1.5])
        >>> sampled_token_loss(student, teacher).sum().backward()
        >>> student.grad.tolist()  # the first token should become more probable, the second less
        [-1.0, 0.5]
    """
    student_logps, teacher_logps = as_pair(student_logps, teacher_logps)
    advantage = teacher_logps - student_logps.detach()
    if baseline is not None:
        advantage = advantage - baseline.detach()
    if weight is not None:
        advantage = advantage * weight.detach()
    return -advantage * student_logps


def extrapolated_logps(teacher_logps: Tensor, reference_logps: Tensor, *, factor: float) -> Tensor:
    """factor log q_y - (factor - 1) log ref_y: what `sampled_token_loss` takes as the teacher to go beyond it.

    The advantage is then -[log p_y - log ref_y - factor (log q_y - log ref_y)], and p is stationary, in expectation,
    at the normalised q^factor ref^(1 - factor): the teacher for 1, the reference for 0, beyond the teacher above 1.

    Args:
        teacher_logps: `(...)`, log q_y of the sampled token, nats.
        reference_logps: `(...)`, log ref_y of the same token, e.g. of the student at step 0.
        factor: how far from the reference towards the teacher.

    Returns:
        `(...)`, nats, not normalised. No gradient.

    Raises:
        ValueError: the shapes differ.

    Source: ExOPD, arXiv 2602.12125 (factor 1.25).

    Example:
        >>> import torch
        >>> extrapolated_logps(torch.tensor([-1.0]), torch.tensor([-3.0]), factor=1.25).tolist()
        [-0.5]
    """
    teacher_logps, reference_logps = as_pair(teacher_logps.detach(), reference_logps)
    return reference_logps + factor * (teacher_logps - reference_logps)
