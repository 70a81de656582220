"""The distillation loss in chunks of tokens, its gradients formed in the forward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .blockwise import BlockwiseLoss
from .head import LogitTransform, check_rows, in_compute_dtype, project
from .objective import Baseline, FromLogits, FromTopK, LossSupport, Objective, TeacherBlock, Tokens
from .support import Divergence, Tail, check_choice, check_top_k


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
    baseline: Baseline | None = None,
    extrapolation: float = 1.0,
    reference_logps: Tensor | None = None,
    importance_cap: float | None = None,
    sampling_logps: Tensor | None = None,
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
        completion_ids: `(N,)` int64, the sampled tokens y; needed by `"sampled"`, by importance weights and for the
            figures of the sampled token.
        baseline: of `"sampled"`: `"full"` subtracts minus the reverse KL from the advantage, `"top_k"` the part of it
            on the student's TopK.
        extrapolation, reference_logps: of `"sampled"`: the factor of `extrapolated_logps` and the `(N,)`
            log-probabilities of the sampled tokens under the reference model.
        importance_cap, sampling_logps: weight each token by `importance_weight`, where both are given.
        temperature: of both distributions.
        student_lm_head_bias, teacher_lm_head_bias: `(V,)`.
        student_logit_scale, teacher_logit_scale, student_final_logit_softcapping, teacher_final_logit_softcapping:
            the logit conventions of each model.
        chunk_size: tokens projected at once; the result does not depend on it. By default from a memory budget
            (`opd_trl.losses.head`).

    Returns:
        loss: scalar, float32 (float64 for float64 inputs); an empty batch gives a zero that keeps its graph.
        stats: detached `(N,)` tensors: `per_token_divergence` (nats, without weight; for `"sampled"` the estimate
            log p_y - log q_y), `entropy` of the student over the whole vocabulary (nats), `student_mass` and
            `teacher_mass` on the support, `overlap` (size of the intersection of both TopK sets / K). With
            `completion_ids` also `sampled_log_ratio` (log q_y - log p_y, nats) and `teacher_rank` (place of y in the
            teacher's TopK from 0 on, K where it is outside).

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
    if student_lm_head_weight.size(0) != teacher_lm_head_weight.size(0):
        raise ValueError(
            f"student and teacher heads must have the same vocabulary, got {student_lm_head_weight.size(0)} and "
            f"{teacher_lm_head_weight.size(0)} rows. Cut both to the rows that the tokenizer uses."
        )
    if support in ("full", "sampled"):  # K serves the overlap figure alone
        top_k = min(top_k, student_lm_head_weight.size(0))
    check_top_k(top_k, student_lm_head_weight.size(0))
    check_rows(student_hidden_states.size(0), teacher_hidden_states=teacher_hidden_states.shape[:-1])
    teacher = TeacherHead(
        LogitTransform(temperature, teacher_logit_scale, teacher_final_logit_softcapping),
        teacher_hidden_states,
        in_compute_dtype(teacher_lm_head_weight.detach()),
        teacher_lm_head_bias,
        top_k,
    )
    chunk_loss = BlockwiseLoss(
        Objective(
            top_k,
            support,
            divergence,
            beta,
            tail,
            stop_gradient,
            pointwise_clip,
            baseline=baseline,
            extrapolation=extrapolation,
            importance_cap=importance_cap,
        ),
        LogitTransform(temperature, student_logit_scale, student_final_logit_softcapping),
        teacher,
        Tokens(token_weights, completion_ids, sampling_logps, reference_logps),
        hidden_size=student_hidden_states.size(-1),
    )
    return chunk_loss.total(student_hidden_states, student_lm_head_weight, student_lm_head_bias, chunk_size=chunk_size)


@dataclass(frozen=True)
class TeacherHead:
    """A teacher that is known by its hidden states `(N, H')` and its head: a `ChunkTeacher`."""

    transform: LogitTransform
    hidden_states: Tensor
    weight: Tensor
    bias: Tensor | None
    top_k: int

    def __call__(self, rows: slice) -> Callable[[slice], TeacherBlock]:
        raw = project(self.hidden_states[rows], self.weight, self.bias)
        return lambda block: FromLogits.of(self.transform.apply(raw[block]), self.top_k)


#: Supports on which a teacher's own TopK, and its log-probability of the sampled token, are enough.
KnownSupport = Literal["teacher", "intersection", "sampled"]


def chunked_loss_from_log_probs(
    student_hidden_states: Tensor,
    student_lm_head_weight: Tensor,
    teacher_ids: Tensor,
    teacher_log_probs: Tensor,
    token_weights: Tensor,
    *,
    support: KnownSupport = "teacher",
    divergence: Divergence = "reverse_kl",
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
            needed by `"sampled"` and for the figures of the sampled token.
        divergence, beta, tail, stop_gradient, pointwise_clip, extrapolation, reference_logps, importance_cap,
            sampling_logps, temperature, student_lm_head_bias, student_logit_scale, student_final_logit_softcapping,
            chunk_size: as in `chunked_support_loss`.

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
    check_choice("support", support, get_args(KnownSupport))
    if support == "sampled" and (completion_ids is None or completion_log_probs is None):
        raise ValueError(
            "support='sampled' needs completion_ids and completion_log_probs: the (N,) sampled tokens and the "
            "teacher's log-probabilities of them."
        )
    if teacher_ids.shape != teacher_log_probs.shape:
        raise ValueError(
            f"teacher_ids and teacher_log_probs must have one shape (N, K), got {tuple(teacher_ids.shape)} and "
            f"{tuple(teacher_log_probs.shape)}."
        )
    rows = {"teacher_ids": teacher_ids.shape[:-1]}
    if completion_log_probs is not None:
        rows["completion_log_probs"] = completion_log_probs.shape
    check_rows(student_hidden_states.size(0), **rows)
    order = teacher_log_probs.detach().argsort(dim=-1, descending=True)
    teacher_ids, log_probs = (x.gather(-1, order) for x in (teacher_ids, teacher_log_probs.detach()))
    ids = teacher_ids
    if completion_ids is not None and completion_log_probs is not None:
        ids = torch.cat([ids, completion_ids.unsqueeze(-1)], dim=-1)
        log_probs = torch.cat([log_probs, completion_log_probs.detach().unsqueeze(-1)], dim=-1)
    chunk_loss = BlockwiseLoss(
        Objective(
            teacher_ids.size(-1),
            support,
            divergence,
            beta,
            tail,
            stop_gradient,
            pointwise_clip,
            extrapolation=extrapolation,
            importance_cap=importance_cap,
        ),
        LogitTransform(temperature, student_logit_scale, student_final_logit_softcapping),
        TeacherTopK(teacher_ids, ids, log_probs),
        Tokens(token_weights, completion_ids, sampling_logps, reference_logps),
        hidden_size=student_hidden_states.size(-1),
    )
    return chunk_loss.total(student_hidden_states, student_lm_head_weight, student_lm_head_bias, chunk_size=chunk_size)


@dataclass(frozen=True)
class TeacherTopK:
    """A teacher that is known on some ids of each token: a `ChunkTeacher`."""

    top_ids: Tensor
    ids: Tensor
    log_probs: Tensor

    def __call__(self, rows: slice) -> Callable[[slice], TeacherBlock]:
        known = [x[rows] for x in (self.top_ids, self.ids, self.log_probs)]
        return lambda block: FromTopK(*(x[block] for x in known))
