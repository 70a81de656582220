"""The distillation loss in chunks of tokens, its gradients formed in the forward."""

from typing import Literal, get_args

import torch
from torch import Tensor

from .divergences import check_beta
from .fused import FusedHeadLoss, LogitGradient
from .head import CHUNK_SIZE, check_rows, project, transform_logits, transform_slope
from .sampled import sampled_token_loss
from .support import (
    Divergence,
    Tail,
    check_choice,
    check_top_k,
    combine_supports,
    is_member,
    support_divergence,
)
from .topk import top_ids


LossSupport = Literal["student", "teacher", "intersection", "union", "full", "sampled"]

STATS = ("per_token_divergence", "entropy", "student_mass", "teacher_mass", "overlap")


def chunked_support_loss(
    student_hidden_states: Tensor,
    student_lm_head_weight: Tensor,
    teacher_hidden_states: Tensor,
    teacher_lm_head_weight: Tensor,
    token_weights: Tensor,
    *,
    top_k: int = 20,
    support: LossSupport = "student",
    divergence: Divergence = "reverse_kl",
    beta: float = 0.5,
    tail: Tail = "renormalize",
    stop_gradient: bool = True,
    pointwise_clip: float | None = None,
    completion_ids: Tensor | None = None,
    temperature: float = 1.0,
    student_lm_head_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    student_final_logit_softcapping: float | None = None,
    teacher_lm_head_bias: Tensor | None = None,
    teacher_logit_scale: float = 1.0,
    teacher_final_logit_softcapping: float | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over tokens of weight x divergence, from the hidden states of student and teacher, in one pass.

    Since `token_weights` are known, the gradients of hidden states and head are formed chunk by chunk in the forward:
    student product, teacher product and two gradient products (one where the head is frozen). Backward multiplies
    them by the incoming scalar. The numbers are those of `select_support`, `support_divergence` and
    `sampled_token_loss`.

    Args:
        student_hidden_states: `(N, H)`; carries the gradient.
        student_lm_head_weight: `(V, H)`; carries the gradient where it requires one.
        teacher_hidden_states: `(N, H')`; never a gradient.
        teacher_lm_head_weight: `(V, H')`; the same vocabulary, cut to the same rows; never a gradient.
        token_weights: `(N,)`, e.g. 1 / (kept tokens of the global batch).
        top_k: K of each model's TopK set; also the K of the `overlap` figure where the support is full or sampled.
        support: as in `select_support`, or `"full"` (every id) or `"sampled"` (`sampled_token_loss`).
        divergence, beta, tail, stop_gradient, pointwise_clip: as in `support_divergence`; not used by `"sampled"`.
        completion_ids: `(N,)` int64, the sampled tokens; needed by `"sampled"` alone.
        temperature: of both distributions.
        student_lm_head_bias, teacher_lm_head_bias: `(V,)`.
        student_logit_scale, teacher_logit_scale, student_final_logit_softcapping, teacher_final_logit_softcapping:
            the logit conventions of each model.
        chunk_size: tokens projected at once; the result does not depend on it.

    Returns:
        loss: scalar, float32 (float64 for float64 inputs); an empty batch gives a zero that keeps its graph.
        stats: detached `(N,)` tensors: `per_token_divergence` (nats, without weight; for `"sampled"` the estimate
            log p_y - log q_y), `entropy` of the student over the whole vocabulary (nats), `student_mass` and
            `teacher_mass` on the support, `overlap` (size of the intersection of both TopK sets / K).

    Raises:
        ValueError: an unknown option, `top_k` out of range, heads of different vocabularies, missing
            `completion_ids`, tensors of another length than `student_hidden_states`.

    Source: arXiv 2605.11182; forming head gradients in the forward as in Liger's fused linear losses.

    Example:
        >>> import torch
        >>> hidden, head = torch.randn(6, 4, requires_grad=True), torch.randn(11, 4)
        >>> loss, stats = chunked_support_loss(hidden, head, hidden.detach(), head, torch.ones(6), top_k=3)
        >>> loss.backward()
        >>> loss.item(), hidden.grad.abs().max().item(), stats["overlap"].tolist()  # the student is its own teacher
        (0.0, 0.0, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """
    check_choice("support", support, get_args(LossSupport))
    check_beta(beta)
    if student_lm_head_weight.size(0) != teacher_lm_head_weight.size(0):
        raise ValueError(
            f"student and teacher heads must have the same vocabulary, got {student_lm_head_weight.size(0)} and "
            f"{teacher_lm_head_weight.size(0)} rows. Cut both to the rows that the tokenizer uses."
        )
    if support in ("full", "sampled"):  # K serves the overlap figure alone
        top_k = min(top_k, student_lm_head_weight.size(0))
    check_top_k(top_k, student_lm_head_weight.size(0))
    if support == "sampled" and completion_ids is None:
        raise ValueError("support='sampled' needs completion_ids, the (N,) sampled tokens.")
    check_rows(
        student_hidden_states.size(0),
        teacher_hidden_states=teacher_hidden_states.shape[:-1],
        token_weights=token_weights.shape,
        **({} if completion_ids is None else {"completion_ids": completion_ids.shape}),
    )

    student_convention = {
        "temperature": temperature,
        "logit_scale": student_logit_scale,
        "final_logit_softcapping": student_final_logit_softcapping,
    }
    teacher_convention = {
        "temperature": temperature,
        "logit_scale": teacher_logit_scale,
        "final_logit_softcapping": teacher_final_logit_softcapping,
    }

    def per_token(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss of each token and the divergence that is reported, from log-probabilities on the support."""
        if support == "sampled":
            return sampled_token_loss(student, teacher).squeeze(-1), (student - teacher).squeeze(-1)
        value = support_divergence(
            student,
            teacher,
            divergence=divergence,
            beta=beta,
            tail="drop" if support == "full" else tail,
            stop_gradient=stop_gradient,
            support_mask=mask,
            pointwise_clip=pointwise_clip,
        )
        return value, value

    def chunk_loss(raw: Tensor, rows: slice, want_gradient: bool):
        # The teacher's logits are gone before the student's probabilities come: three (n, V) tensors at most.
        logits = transform_logits(raw, **student_convention)
        student_ids = top_ids(logits, top_k)
        raw_teacher = project(teacher_hidden_states[rows], teacher_lm_head_weight, teacher_lm_head_bias)
        teacher = transform_logits(raw_teacher, **teacher_convention)
        teacher_ids = top_ids(teacher, top_k)
        del raw_teacher
        mask = ids = None
        if support == "sampled":
            ids = completion_ids[rows, None]
        elif support != "full":
            ids, mask = combine_supports(student_ids, teacher_ids, support=support)
        _, log_normalizer = normalize(teacher, teacher_ids)
        teacher = (teacher if ids is None else teacher.gather(-1, ids)) - log_normalizer
        probs, log_normalizer = normalize(logits, student_ids)
        student = (logits if ids is None else logits.gather(-1, ids)) - log_normalizer
        overlap = is_member(student_ids, teacher_ids).to(logits.dtype).mean(-1)
        entropy = log_normalizer.squeeze(-1) - torch.linalg.vecdot(probs, logits)
        masses = [(x.exp() if mask is None else x.exp() * mask).sum(-1) for x in (student, teacher)]

        with torch.set_grad_enabled(want_gradient):
            student.requires_grad_(want_gradient)
            values, reported = per_token(student, teacher, mask)
            loss = (values * token_weights[rows]).sum()
        gradient = None
        if want_gradient:
            (by_log_prob,) = torch.autograd.grad(loss, student)
            renormalized = tail == "renormalize" and support not in ("full", "sampled")
            gradient = to_logits(by_log_prob, ids, probs, renormalized=renormalized, hidden_size=hidden_size)
            at = logits if gradient.ids is None else logits.gather(-1, gradient.ids)
            slope = transform_slope(at, **student_convention)
            if not isinstance(slope, float) or slope != 1.0:
                gradient = gradient._replace(values=gradient.values * slope)
        return loss.detach(), gradient, (reported.detach(), entropy, *masses, overlap)

    hidden_size = student_hidden_states.size(-1)
    loss, *stats = FusedHeadLoss.apply(
        student_hidden_states,
        student_lm_head_weight,
        student_lm_head_bias,
        chunk_loss,
        chunk_size,
        torch.is_grad_enabled(),
    )
    return loss, dict(zip(STATS, stats, strict=True))


def normalize(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities `(n, V)` and log sum exp `(n, 1)` of a chunk of logits whose TopK `ids` are known.

    The normaliser comes from the largest entry, whose probability is at least 1 / V: no further pass over the
    vocabulary. Student and teacher go through the same arithmetic, so that equal models give exactly equal numbers.
    """
    probs, first = logits.softmax(-1), ids[:, :1]
    return probs, logits.gather(-1, first) - probs.gather(-1, first).log()


def to_logits(
    by_log_prob: Tensor, ids: Tensor | None, probs: Tensor, *, renormalized: bool, hidden_size: int
) -> LogitGradient:
    """From the gradient in log-probabilities on the support to the one in logits.

    With g_k = dL/dlog p_k: dL/dz_j = g_j 1_S(j) - p_j sum_k g_k. A renormalised loss does not feel the common
    normaliser, sum_k g_k = 0, so its gradient is zero off the support and needs no product with the whole head.

    Args:
        by_log_prob: `(n, K)`, or `(n, V)` where `ids` is None.
        ids: `(n, K)`, or None for the whole vocabulary.
        probs: `(n, V)`; overwritten.
        renormalized: does the sum of `by_log_prob` vanish in every row?
        hidden_size: H; the sparse form holds `n K H` numbers, so it is used while K H <= V.
    """
    if renormalized and ids.size(-1) * hidden_size <= probs.size(-1):
        return LogitGradient(by_log_prob, ids)
    dense = probs.mul_(-by_log_prob.sum(-1, keepdim=True))
    return LogitGradient(dense.add_(by_log_prob) if ids is None else dense.scatter_add_(-1, ids, by_log_prob))
