"""The policy-gradient form: one sampled token per position."""

from torch import Tensor

from .divergences import as_pair


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
