"""TopK plus the sampled token's tail: in expectation the reverse KL over the whole vocabulary."""

from torch import Tensor

from .divergences import LOG_ZERO, as_pair, expected
from .support import TOP_K_SUPPORTS, log_tail


def sampled_tail_divergence(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    student_logps: Tensor,
    teacher_logps: Tensor,
    *,
    tail_weight: Tensor,
    support_mask: Tensor | None = None,
    centre: Tensor | None = None,
) -> Tensor:
    """The reverse KL, exact on a support S and estimated outside of it by the sampled token y.

    With p the student, q the teacher, r = log p - log q and any c that does not depend on y:

        c + sum_S p sg(r - c) + w sg(r_y - c) p_y / sg(p_y)        w = 1[y not in S]
        dL/dz_j = p_j [(r_j - c) 1_S(j) - sum_S p (r - c)] + w (r_y - c) (1[j=y] - p_j)

    Over y ~ p the expected value is the reverse KL over the whole vocabulary, sum_V p r, and the expected gradient is
    its gradient, p_j (r_j - sum_V p r), for every c: what c takes from the terms on S it gives back outside. (p_y /
    sg(p_y) is 1 and has the gradient of log p_y.) Where y was drawn from another mu, w = 1[y not in S] p_y / mu_y
    keeps the expectation, as long as mu_y > 0 wherever p_y > 0; the terms on S do not depend on y and need no weight.
    With w = 0 everywhere, where y says nothing of p, what is left under the default c is the tail bucket.

    Args:
        student_log_probs: `(..., K)`, log p on the support, normalised over the full vocabulary; with gradient.
        teacher_log_probs: `(..., K)`, log q on the same ids; detached.
        student_logps, teacher_logps: `(...)`, log p_y and log q_y of the sampled token; the first with gradient.
        tail_weight: `(...)`, w, see `tail_weight`. Detached.
        support_mask: `(..., K)` bool, False for entries outside S. A row without any entry is the sampled token alone.
        centre: `(...)`, c, detached. Default: the log-ratio of both tails, log((1 - sum_S p) / (1 - sum_S q)), which
            had the least variance of the choices in docs/losses.md; the terms on S then have the gradient of
            `support_divergence` with `tail="bucket"`, and y adds what it says of the inside of the tail.

    Returns:
        `(...)`, nats per token, float32 (float64 for float64 inputs), neither masked nor reduced. One value can be
        negative; their mean estimates the reverse KL.

    Raises:
        ValueError: shapes of student and teacher differ.

    Source: NeMo-RL#3584 (c = 0); arXiv 2605.11182 for the terms on S.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.6, 0.1, 0.3]).log()
        >>> w = torch.tensor([0.0, 1.0, 1.0])  # each token once as the sampled one; the first is the support
        >>> found = sampled_tail_divergence(p[:1].expand(3, 1), q[:1].expand(3, 1), p, q, tail_weight=w)
        >>> round((p.exp() * found).sum().item(), 5), round((p.exp() * (p - q)).sum().item(), 5)
        (0.15733, 0.15733)
    """
    student, teacher = as_pair(student_log_probs, teacher_log_probs)
    own, theirs = as_pair(student_logps, teacher_logps)
    if support_mask is not None:
        student, teacher = (x.masked_fill(~support_mask, LOG_ZERO) for x in (student, teacher))
    if centre is None:
        centre = (log_tail(student.detach()) - log_tail(teacher)).squeeze(-1)
    centre, tail_weight = centre.detach(), tail_weight.detach()
    on_support = expected(student.exp(), (student - teacher).detach() - centre.unsqueeze(-1)).sum(-1)
    of_sampled = ((own - theirs).detach() - centre) * (own - own.detach()).exp()
    return centre + on_support + tail_weight * of_sampled


def tail_weight(
    completion_ids: Tensor, ids: Tensor, mask: Tensor, student_wrote: Tensor | None, importance: Tensor | None
) -> Tensor:
    """What `sampled_tail_divergence` multiplies the sampled token's term by.

    Args:
        completion_ids: `(n,)`, the sampled tokens y.
        ids, mask: `(n, K)`, the support.
        student_wrote: `(n,)` bool, False where the student did not sample y, which then says nothing of p; None: all.
        importance: `(n,)`, p_y / mu_y, see `importance_weight`; None: 1.

    Returns:
        `(n,)`, 1[y not in S] x student_wrote x importance. No gradient.
    """
    outside = ~((ids == completion_ids.unsqueeze(-1)) & mask).any(-1)
    if student_wrote is not None:
        outside = outside & student_wrote.bool()
    return outside if importance is None else outside * importance


def why_not_sampled_tail(
    support: str, divergence: str, stop_gradient: bool, pointwise_clip: float | None
) -> str | None:
    """Why a loss cannot have the tail `sample`, and what to do; None where it can.

    >>> why_not_sampled_tail("student", "reverse_kl", stop_gradient=True, pointwise_clip=None)
    """
    if support not in TOP_K_SUPPORTS:
        return f"it completes a TopK support, and the support {support!r} has no tail. Leave the tail out."
    if divergence != "reverse_kl":
        return (
            f"the tail of the {divergence} is a mean over the teacher's tokens too, and the sampled token is the "
            "student's: it estimates the tail of the reverse_kl alone. Use the tail 'bucket', or reverse_kl."
        )
    if not stop_gradient:
        return (
            "without stop_gradient the terms on the support keep their '+1', which the sampled token does not cancel. "
            "Set stop_gradient to true."
        )
    if pointwise_clip is not None:
        return (
            f"a pointwise clip of {pointwise_clip} cuts terms on the support and not the tail, so that the mean is no "
            "longer the whole vocabulary's. Leave the clip out."
        )
    return None
