"""The support, K token ids per position: how it is chosen, and divergences on it."""

from typing import Literal, get_args

import torch
from torch import Tensor

from .divergences import LOG_ZERO, as_pair, check_beta, check_choice, divergence_named


#: Supports of K ids that student and teacher choose, as `select_support` explains them.
Support = Literal["student", "teacher", "intersection", "union"]
#: And every id of the vocabulary, or the sampled token alone.
LossSupport = Literal[Support, "full", "sampled"]
#: Supports on which a teacher's own TopK, and its log-probability of the sampled token, are enough.
KnownSupport = Literal["teacher", "intersection", "sampled"]
#: What becomes of the probability outside a support, as `support_divergence` and `sampled_tail_divergence` explain it.
Tail = Literal["drop", "bucket", "renormalize", "reweight", "sample"]
TOP_K_SUPPORTS, SUPPORTS, KNOWN_SUPPORTS, TAILS = map(get_args, (Support, LossSupport, KnownSupport, Tail))


def combine_supports(student_ids: Tensor, teacher_ids: Tensor, *, support: Support) -> tuple[Tensor, Tensor]:
    """Join two sets of ids `(..., K)` into the ids and mask of one support; see `select_support`."""
    if support in ("student", "teacher"):
        ids = student_ids if support == "student" else teacher_ids
        return ids, torch.ones_like(ids, dtype=torch.bool)
    if support == "intersection":
        return student_ids, is_member(student_ids, teacher_ids)
    only_teacher = ~is_member(teacher_ids, student_ids)
    ids = torch.cat([student_ids, teacher_ids], dim=-1)
    return ids, torch.cat([torch.ones_like(student_ids, dtype=torch.bool), only_teacher], dim=-1)


def is_member(ids: Tensor, of: Tensor) -> Tensor:
    """`(..., K)` bool: is each id found among `of`, row by row."""
    of = of.sort(-1).values
    found_at = torch.searchsorted(of, ids.contiguous()).clamp(max=of.size(-1) - 1)
    return of.gather(-1, found_at) == ids


# Shorter rows are sorted directly.
SHORTEST_LONG_ROW = 4096


def top_ids(values: Tensor, top_k: int) -> Tensor:
    """Ids of the K largest entries of each row, largest first; the set and order of `torch.topk` up to ties.

    A long row is dealt out to piles, entry v to pile v mod (number of piles): its K largest entries lie in the K piles
    with the largest maxima, so only those (and the remainder of the row) are searched. Exact, and faster than
    `torch.topk` over a vocabulary (docs/performance.md).

    Args:
        values: `(n, V)`.
        top_k: K, at most V.

    Returns:
        `(n, K)` int64.

    Example:
        >>> top_ids(torch.tensor([[1.0, 3.0, 2.0]]), 2).tolist()
        [[1, 2]]
    """
    n, width = values.shape
    # Piles of about sqrt(V / K) entries make both searches equally long.
    height = max(2, 1 << round((width / top_k) ** 0.5).bit_length() - 1)
    piles = width // height
    if width < SHORTEST_LONG_ROW or piles <= 2 * top_k:
        return values.topk(top_k, dim=-1).indices
    best = top_ids(values[:, : height * piles].unflatten(-1, (height, piles)).amax(-2), top_k)
    ids = (best.unsqueeze(-1) + torch.arange(0, height * piles, piles, device=values.device)).flatten(1)
    if height * piles < width:
        rest = torch.arange(height * piles, width, device=values.device)
        ids = torch.cat([ids, rest.expand(n, -1)], dim=-1)
    return ids.gather(-1, values.gather(-1, ids).topk(top_k, dim=-1).indices)


def check_top_k(top_k: int, vocab_size: int) -> None:
    """Raise ValueError unless 1 <= top_k <= vocab_size."""
    if top_k < 1:
        raise ValueError(f"loss_top_k must be >= 1, got {top_k}. Use loss_support='full' for the whole vocabulary.")
    if top_k > vocab_size:
        raise ValueError(
            f"loss_top_k must be at most the vocabulary of {vocab_size}, got {top_k}. "
            "Use loss_support='full' for the whole vocabulary."
        )


@torch.no_grad()
def select_support(
    student_logits_or_log_probs: Tensor,
    teacher_logits_or_log_probs: Tensor,
    *,
    top_k: int,
    support: Support = "student",
) -> tuple[Tensor, Tensor]:
    """Choose the token ids on which student and teacher are compared, per position.

    `student` and `teacher` take the K most probable ids of that model; `intersection` keeps the student's ids that
    are also among the teacher's K (it can be empty: its mask row is then all False); `union` takes both sets, each
    id once.

    Args:
        student_logits_or_log_probs: `(..., V)`; only the order counts, so logits do.
        teacher_logits_or_log_probs: `(..., V)`.
        top_k: K, at least 1 and at most V.
        support: which set.

    Returns:
        ids: `(..., K)` int64, `(..., 2K)` for `union`.
        mask: bool of the same shape, False where an entry does not belong to the support. No gradient.

    Raises:
        ValueError: `top_k` out of range, an unknown `support`.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([0.0, 3.0, 2.0, 1.0])
        >>> ids, mask = select_support(student, teacher, top_k=2, support="intersection")
        >>> ids[mask].tolist()
        [1]
        >>> ids, mask = select_support(student, teacher, top_k=2, support="union")
        >>> sorted(ids[mask].tolist())
        [0, 1, 2]
    """
    check_choice("support", support, TOP_K_SUPPORTS)
    check_top_k(top_k, student_logits_or_log_probs.size(-1))
    return combine_supports(
        student_logits_or_log_probs.topk(top_k, dim=-1).indices,
        teacher_logits_or_log_probs.topk(top_k, dim=-1).indices,
        support=support,
    )


def support_divergence(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    *,
    divergence: str = "reverse_kl",
    beta: float = 0.5,
    tail: Tail = "renormalize",
    stop_gradient: bool = True,
    support_mask: Tensor | None = None,
    pointwise_clip: float | None = None,
) -> Tensor:
    """Divergence on a support S, from log-probabilities that are normalised over the FULL vocabulary.

    With p the student, q the teacher, r = log p - log q, z the student's logits:

    - reverse KL with `stop_gradient` (eq. 12): value sum_S p r, written p * sg(r), so that
      dL/dz_j = p_j (r_j 1_S(j) - sum_S p r), zero where p = q on S. Without it the gradient has the extra term
      p_j (1_S(j) - sum_S p): the plain TopK loss is stationary at p = q / e and unlearns a perfect student.
    - forward KL: sum_S q (log q - log p). `jsd`: see `generalized_jsd`. `mixed`: (1 - beta) forward + beta reverse,
      the reverse part with its stop-gradient.
    - `tail="drop"` ignores the rest of the vocabulary; `"bucket"` adds it as one more category of probability
      1 - sum_S; `"renormalize"` divides both by their mass on S first (the mass on S is then free).
    - `tail="reweight"`, of the reverse KL with its stop-gradient alone: sum_S p r / sg(m) with m = sum_S p, the
      policy gradient whose weights are the student's shares of the mass on S and whose log-ratios stay those of the
      whole vocabulary: dL/dz_j = p_j (r_j 1_S(j) - sum_S p r) / m.

    `stop_gradient` acts on the reverse KL alone, and only a dropped tail feels it: with a bucket or renormalised
    probabilities the extra term sums to zero.

    Args:
        student_log_probs: `(..., K)`, log p on the support; carries the gradient.
        teacher_log_probs: `(..., K)`, log q on the same ids; detached.
        divergence: a name in `DIVERGENCES`: `"reverse_kl"`, `"forward_kl"`, `"jsd"` or `"mixed"`.
        beta: share of the reverse side in `jsd` (0 forward, 1 reverse) and `mixed`.
        tail: `"drop"`, `"bucket"`, `"renormalize"` or `"reweight"`. `"sample"` needs the sampled tokens too: it is
            `sampled_tail_divergence`.
        stop_gradient: hold the log-ratio of the reverse KL constant.
        support_mask: `(..., K)` bool, False for entries outside S. A row without any entry gives a zero that keeps
            its graph (with `bucket`: the divergence of two empty supports, also zero).
        pointwise_clip: upper bound of every entry's signed term (OPSD uses 0.05). The negative terms stay, so the
            value can turn negative; clipped entries have no gradient.

    Returns:
        `(...)`, nats per token, float32 (float64 for float64 inputs), neither masked nor reduced.

    Raises:
        ValueError: shapes differ, an unknown option, `beta` outside [0, 1], K = 1 with `renormalize`, which is
            identically zero, `reweight` with anything but the reverse KL and its stop-gradient, or `sample`.

    Source: "The Many Faces of On-Policy Distillation", arXiv 2605.11182, eq. 12; `mixed` as in NeMo-RL; `reweight` as
    in the code of "Rethinking On-Policy Distillation", arXiv 2604.13016.

    Example:
        >>> import torch
        >>> logits = torch.tensor([2.0, 1.0, 0.0], requires_grad=True)
        >>> teacher = logits.detach().log_softmax(-1)
        >>> options = dict(tail="drop", divergence="reverse_kl")
        >>> loss = support_divergence(logits.log_softmax(-1)[:2], teacher[:2], stop_gradient=True, **options)
        >>> torch.autograd.grad(loss, logits)[0].abs().max().item()  # a perfect student stays
        0.0
        >>> loss = support_divergence(logits.log_softmax(-1)[:2], teacher[:2], stop_gradient=False, **options)
        >>> torch.autograd.grad(loss, logits)[0].abs().max().item() > 0.05  # the plain form pushes it away
        True
    """
    terms_of = divergence_named(divergence).terms
    check_choice("tail", tail, TAILS)
    check_beta(beta)
    if tail == "renormalize" and student_log_probs.size(-1) == 1:
        raise ValueError(
            "tail='renormalize' on a support of one token is identically zero. Use a larger top_k, "
            "tail='drop' or tail='bucket'."
        )
    if tail == "reweight" and not (divergence == "reverse_kl" and stop_gradient):
        raise ValueError(
            f"tail='reweight' is a policy gradient: it needs divergence='reverse_kl' with stop_gradient=True, got "
            f"{divergence!r} with {stop_gradient}. Use tail='drop' for other divergences."
        )
    if tail == "sample":
        raise ValueError(
            "tail='sample' needs the log-probabilities of the sampled tokens. Use sampled_tail_divergence, or "
            "chunked_support_loss with completion_ids."
        )
    student, teacher = as_pair(student_log_probs, teacher_log_probs)
    if support_mask is not None:
        student, teacher = (x.masked_fill(~support_mask, LOG_ZERO) for x in (student, teacher))
    if tail == "renormalize":
        student, teacher = (x - x.logsumexp(-1, keepdim=True) for x in (student, teacher))
    elif tail == "bucket":
        student, teacher = (torch.cat([x, log_tail(x)], dim=-1) for x in (student, teacher))

    terms = terms_of(student, teacher, beta=beta, stop_gradient=stop_gradient)
    if tail == "reweight":
        mass = student.detach().logsumexp(-1, keepdim=True).exp()
        terms = terms / mass.clamp(min=torch.finfo(mass.dtype).tiny)  # an empty support has none
    if pointwise_clip is not None:
        terms = terms.clamp(max=pointwise_clip)
    if support_mask is not None:
        kept = support_mask if tail != "bucket" else torch.nn.functional.pad(support_mask, (0, 1), value=True)
        terms = terms.masked_fill(~kept, 0.0)
    return terms.sum(-1)


def log_tail(log_probs: Tensor) -> Tensor:
    """log(1 - sum_S p), `(..., 1)`; at least the dtype's resolution, below which the sum cannot be told from 1."""
    log_mass = log_probs.logsumexp(-1, keepdim=True)
    return torch.log(-torch.expm1(log_mass.clamp(max=-torch.finfo(log_mass.dtype).eps)))
