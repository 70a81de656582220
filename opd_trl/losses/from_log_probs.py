"""The distillation loss against a teacher of whom only log-probabilities are known, as a server returns them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .blockwise import BlockwiseLoss
from .distribution import FromTopK, TeacherBlock
from .head import LogitTransform, check_rows
from .objective import Objective
from .support import Divergence, Tail, check_choice
from .tokens import Tokens


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
