"""The distillation loss in chunks of tokens, its gradients formed in the forward."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from .divergences import check_beta
from .head import CHUNK_SIZE, check_rows, chunks, entropy_of, project, transform_logits
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
    check_top_k(top_k, student_lm_head_weight.size(0))
    if support == "sampled" and completion_ids is None:
        raise ValueError("support='sampled' needs completion_ids, the (N,) sampled tokens.")
    check_rows(
        student_hidden_states.size(0),
        teacher_hidden_states=teacher_hidden_states.shape[:-1],
        token_weights=token_weights.shape,
        **({} if completion_ids is None else {"completion_ids": completion_ids.shape}),
    )

    def student_log_probs(logits: Tensor) -> Tensor:
        return transform_logits(
            logits,
            temperature=temperature,
            logit_scale=student_logit_scale,
            final_logit_softcapping=student_final_logit_softcapping,
        ).log_softmax(-1)

    def chunk_loss(student_logits: Tensor, rows: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
        student = student_log_probs(student_logits)
        with torch.no_grad():
            teacher = transform_logits(
                project(teacher_hidden_states[rows], teacher_lm_head_weight, teacher_lm_head_bias),
                temperature=temperature,
                logit_scale=teacher_logit_scale,
                final_logit_softcapping=teacher_final_logit_softcapping,
            ).log_softmax(-1)
            student_ids, teacher_ids = (x.topk(top_k, dim=-1).indices for x in (student, teacher))
            overlap = is_member(student_ids, teacher_ids).to(student.dtype).mean(-1)
            entropy = entropy_of(student)
        mask = None
        if support == "sampled":
            student, teacher = (x.gather(-1, completion_ids[rows, None]) for x in (student, teacher))
            per_token_loss = sampled_token_loss(student, teacher).squeeze(-1)
            per_token_divergence = (student - teacher).squeeze(-1)
        else:
            if support != "full":
                ids, mask = combine_supports(student_ids, teacher_ids, support=support)
                student, teacher = student.gather(-1, ids), teacher.gather(-1, ids)
            per_token_divergence = per_token_loss = support_divergence(
                student,
                teacher,
                divergence=divergence,
                beta=beta,
                tail="drop" if support == "full" else tail,
                stop_gradient=stop_gradient,
                support_mask=mask,
                pointwise_clip=pointwise_clip,
            )
        student_mass, teacher_mass = (
            (x.detach().exp() if mask is None else x.detach().exp() * mask).sum(-1) for x in (student, teacher)
        )
        loss = (per_token_loss * token_weights[rows]).sum()
        return loss, (per_token_divergence.detach(), entropy, student_mass, teacher_mass, overlap)

    loss, *stats = _FusedHeadLoss.apply(
        student_hidden_states,
        student_lm_head_weight,
        student_lm_head_bias,
        chunk_loss,
        chunk_size,
        torch.is_grad_enabled(),
    )
    return loss, dict(zip(STATS, stats, strict=True))


class _FusedHeadLoss(torch.autograd.Function):
    """Sum of a chunk-wise loss of raw logits, whose gradients are formed in the forward."""

    @staticmethod
    def forward(
        ctx,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        chunk_loss: Callable[[Tensor, slice], tuple[Tensor, tuple[Tensor, ...]]],
        chunk_size: int,
        grad_enabled: bool,
    ):
        want_hidden, want_weight, want_bias = (grad_enabled and need for need in ctx.needs_input_grad[:3])
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        # Head gradients are summed over the chunks in float32, whatever the dtype of the head.
        grad_hidden = torch.zeros_like(hidden_states) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if want_bias else None
        total = hidden_states.new_zeros((), dtype=dtype)
        stats: list[tuple[Tensor, ...]] = []
        for rows in chunks(hidden_states.size(0), chunk_size):
            logits = project(hidden_states[rows], weight, bias)
            with torch.set_grad_enabled(want_hidden or want_weight or want_bias):
                logits.requires_grad_(torch.is_grad_enabled())
                loss, chunk_stats = chunk_loss(logits, rows)
                grad = torch.autograd.grad(loss, logits)[0].to(weight.dtype) if logits.requires_grad else None
            total += loss.detach()
            stats.append(chunk_stats)
            if want_hidden:
                grad_hidden[rows] = grad @ weight
            if want_weight:
                grad_weight += grad.mT @ hidden_states[rows].to(grad.dtype)
            if want_bias:
                grad_bias += grad.sum(0)
        ctx.grads = [
            None if grad is None else grad.to(like.dtype)
            for grad, like in ((grad_hidden, hidden_states), (grad_weight, weight), (grad_bias, bias))
        ]
        outputs = [torch.cat(parts) for parts in zip(*stats, strict=True)]
        ctx.mark_non_differentiable(*outputs)
        return total, *outputs

    @staticmethod
    def backward(ctx, grad_loss: Tensor, *_):
        return *(None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.grads), None, None, None
