"""The public losses of a whole head, with every argument by its own name; inside they are four, see `fused.py`."""

from torch import Tensor

from .fused import distillation_loss
from .head import Head
from .next_token import NextToken, TeacherTopK
from .objective import Baseline, Objective, Tokens
from .support import KnownSupport, LossSupport, Tail


def chunked_support_loss(
    student_hidden_states: Tensor,
    student_lm_head_weight: Tensor,
    teacher_hidden_states: Tensor,
    teacher_lm_head_weight: Tensor,
    token_weights: Tensor,
    *,
    top_k: int = 20,
    support: LossSupport = "student",
    divergence: str = "reverse_kl",
    beta: float = 0.5,
    tail: Tail = "renormalize",
    stop_gradient: bool = True,
    pointwise_clip: float | None = None,
    completion_ids: Tensor | None = None,
    baseline: Baseline | None = None,
    extrapolation: float = 1.0,
    reference_logps: Tensor | None = None,
    importance_cap: float | None = None,
    sampling_logps: Tensor | None = None,
    student_wrote: Tensor | None = None,
    temperature: float = 1.0,
    student_lm_head_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    student_final_logit_softcapping: float | None = None,
    teacher_lm_head_bias: Tensor | None = None,
    teacher_logit_scale: float = 1.0,
    teacher_final_logit_softcapping: float | None = None,
    chunk_size: int | None = None,
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
            `tail="sample"` is `sampled_tail_divergence`, of the reverse KL alone.
        completion_ids: `(N,)` int64, the sampled tokens y; needed by `"sampled"`, by `tail="sample"`, by importance
            weights and for the figures of the sampled token.
        baseline: of `"sampled"`: `"full"` subtracts minus the reverse KL from the advantage, `"top_k"` the part of it
            on the student's TopK.
        extrapolation, reference_logps: of `"sampled"`: the factor of `extrapolated_logps` and the `(N,)`
            log-probabilities of the sampled tokens under the reference model.
        importance_cap, sampling_logps: weight each token by `importance_weight`, where both are given; with
            `tail="sample"` the sampled term alone, as the terms on the support do not depend on y.
        student_wrote: `(N,)` bool, False where the student did not sample y (given text): `tail="sample"` has no
            sampled term there. By default it sampled all.
        temperature: of both distributions.
        student_lm_head_bias, teacher_lm_head_bias: `(V,)`.
        student_logit_scale, teacher_logit_scale, student_final_logit_softcapping, teacher_final_logit_softcapping:
            the logit conventions of each model.
        chunk_size: tokens projected at once; the result does not depend on it. By default from a memory budget
            (`opd_trl.losses.head`).

    Returns:
        loss: scalar, float32 (float64 for float64 inputs); an empty batch gives a zero that keeps its graph.
        stats: detached `(N,)` tensors: `per_token_divergence` (nats, without weight; for `"sampled"` the estimate
            log p_y - log q_y, for `tail="sample"` that of the whole vocabulary's reverse KL), `entropy` of the student
            over the whole vocabulary (nats), `student_mass` and `teacher_mass` on the support, `overlap` (size of the
            intersection of both TopK sets / K). With `completion_ids` also `sampled_log_ratio` (log q_y - log p_y,
            nats) and `teacher_rank` (place of y in the teacher's TopK from 0 on, K where it is outside).

    Raises:
        ValueError: an unknown option, `top_k` out of range, heads of different vocabularies, missing
            `completion_ids` or `reference_logps`, tensors of another length than `student_hidden_states`,
            `chunk_size` below 1.

    Source: arXiv 2605.11182; forming head gradients in the forward as in Liger's fused linear losses.

    Example:
        >>> import torch
        >>> hidden, head = torch.randn(6, 4, requires_grad=True), torch.randn(11, 4)
        >>> loss, stats = chunked_support_loss(hidden, head, hidden.detach(), head, torch.ones(6), top_k=3)
        >>> loss.backward()
        >>> loss.item(), hidden.grad.abs().max().item(), stats["overlap"].tolist()  # the student is its own teacher
        (0.0, 0.0, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """
    student_head = Head(
        student_lm_head_weight, student_lm_head_bias, student_logit_scale, student_final_logit_softcapping
    )
    teacher_head = Head(
        teacher_lm_head_weight, teacher_lm_head_bias, teacher_logit_scale, teacher_final_logit_softcapping
    )
    return distillation_loss(
        NextToken(student_hidden_states, student_head),
        NextToken(teacher_hidden_states, teacher_head),
        Tokens(token_weights, completion_ids, sampling_logps, reference_logps, student_wrote),
        Objective(
            top_k=top_k,
            support=support,
            divergence=divergence,
            beta=beta,
            tail=tail,
            stop_gradient=stop_gradient,
            pointwise_clip=pointwise_clip,
            baseline=baseline,
            extrapolation=extrapolation,
            importance_cap=importance_cap,
            temperature=temperature,
            chunk_size=chunk_size,
        ),
    )


def chunked_loss_from_log_probs(
    student_hidden_states: Tensor,
    student_lm_head_weight: Tensor,
    teacher_ids: Tensor,
    teacher_log_probs: Tensor,
    token_weights: Tensor,
    *,
    support: KnownSupport = "teacher",
    divergence: str = "reverse_kl",
    beta: float = 0.5,
    tail: Tail = "renormalize",
    stop_gradient: bool = True,
    pointwise_clip: float | None = None,
    completion_ids: Tensor | None = None,
    completion_log_probs: Tensor | None = None,
    extrapolation: float = 1.0,
    reference_logps: Tensor | None = None,
    importance_cap: float | None = None,
    sampling_logps: Tensor | None = None,
    student_wrote: Tensor | None = None,
    temperature: float = 1.0,
    student_lm_head_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    student_final_logit_softcapping: float | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`chunked_support_loss` where the teacher is its log-probabilities on its own TopK instead of a head.

    Same numbers, gradients and statistics. The supports `"student"`, `"union"` and `"full"` ask for ids that nobody
    has scored, so they are refused.

    Args:
        student_hidden_states: `(N, H)`; carries the gradient.
        student_lm_head_weight: `(V, H)`; carries the gradient where it requires one.
        teacher_ids: `(N, K)` int64, the teacher's K most probable ids of each token, each once.
        teacher_log_probs: `(N, K)`, nats, normalised over the full vocabulary at `temperature`; never a gradient.
        token_weights: `(N,)`.
        support: `"teacher"`, `"intersection"` with the student's TopK of the same K, or `"sampled"`.
        completion_ids, completion_log_probs: `(N,)`, the sampled tokens and the teacher's log-probabilities of them;
            needed by `"sampled"`, by `tail="sample"` and for the figures of the sampled token.
        divergence, beta, tail, stop_gradient, pointwise_clip, extrapolation, reference_logps, importance_cap,
            sampling_logps, student_wrote, temperature, student_lm_head_bias, student_logit_scale,
            student_final_logit_softcapping, chunk_size: as in `chunked_support_loss`.

    Returns:
        loss and stats, as `chunked_support_loss`; `sampled_log_ratio` is NaN where nobody has said what the teacher's
        log-probability of the sampled token is.

    Raises:
        ValueError: a support that needs other ids, `"sampled"` without the sampled tokens, shapes that do not fit.

    Example:
        >>> import torch
        >>> hidden, head = torch.eye(3, requires_grad=True), torch.eye(3)
        >>> log_probs, ids = (hidden @ head).log_softmax(-1).topk(2)
        >>> loss, _ = chunked_loss_from_log_probs(hidden, head, ids, log_probs.detach(), torch.ones(3))
        >>> round(loss.item(), 5)  # the student is its own teacher
        0.0
    """
    head = Head(student_lm_head_weight, student_lm_head_bias, student_logit_scale, student_final_logit_softcapping)
    return distillation_loss(
        NextToken(student_hidden_states, head),
        TeacherTopK(teacher_ids, teacher_log_probs, completion_log_probs),
        Tokens(token_weights, completion_ids, sampling_logps, reference_logps, student_wrote),
        Objective(
            support=support,
            divergence=divergence,
            beta=beta,
            tail=tail,
            stop_gradient=stop_gradient,
            pointwise_clip=pointwise_clip,
            extrapolation=extrapolation,
            importance_cap=importance_cap,
            temperature=temperature,
            chunk_size=chunk_size,
        ),
    )


def chunked_support_log_probs(
    hidden_states: Tensor,
    lm_head_weight: Tensor,
    *,
    ids: Tensor | None = None,
    top_k: int | None = None,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    final_logit_softcapping: float | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of K ids per position, normalised over the full vocabulary, from hidden states.

    log p = log_softmax(T^-1 cap tanh(scale (h W^T + b) / cap)), gathered at `ids` or at its own `top_k`. Chunks are
    recomputed in backward, so that only `(chunk_size, V)` logits live at a time.

    Args:
        hidden_states: `(N, H)`; carries the gradient.
        lm_head_weight: `(V, H)`; carries the gradient.
        ids: `(N, K)` int64, the ids to score. Exactly one of `ids` and `top_k`.
        top_k: score the K most probable ids of each position.
        bias: `(V,)`, carries the gradient.
        temperature, logit_scale, final_logit_softcapping: as above; the last two as TRL reads them from a config.
        chunk_size: positions projected at once; memory is proportional to it, the result does not depend on it. By
            default from a memory budget (`opd_trl.losses.head`).

    Returns:
        log_probs: `(N, K)`, nats, float32 (float64 for float64 inputs); differentiable once.
        ids: `(N, K)`.
        entropy: `(N,)` of the whole distribution, nats; differentiable.

    Raises:
        ValueError: both or neither of `ids` and `top_k`, `top_k` out of range, `ids` of another length, `chunk_size`
            below 1.

    Example:
        >>> import torch
        >>> log_probs, ids, _ = chunked_support_log_probs(torch.eye(2), torch.eye(2), top_k=1)
        >>> ids.tolist(), round(log_probs[0, 0].item(), 4)
        ([[0], [1]], -0.3133)
    """
    head = Head(lm_head_weight, bias, logit_scale, final_logit_softcapping)
    model = NextToken(hidden_states, head)
    return model.log_probs(ids=ids, top_k=top_k, temperature=temperature, chunk_size=chunk_size)
