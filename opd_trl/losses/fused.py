"""One pass through the head of the student: loss, gradients and figures per token, formed chunk by chunk.

`distillation_loss` is what trains. `FusedHeadLoss.forward` projects a chunk of tokens; `block_loss` has the
arithmetic of a block of its rows.
"""

import torch
from torch import Tensor

from .head import (
    HeadGradients,
    LogitGradient,
    LogitTransform,
    block_size_for,
    chunk_size_for,
    chunks,
    in_compute_dtype,
    project,
)
from .mixture import LossTeacher
from .next_token import ChunkTeacher, NextToken, TeacherBlock, normalize, take
from .objective import Objective, Tokens, extrapolated_logps, importance_weight, sampled_figures, sampled_token_loss
from .sampled_tail import sampled_tail_divergence, tail_weight
from .support import is_member, support_divergence, top_ids


#: Figures per token, in the order in which `block_loss` returns them.
STATS = ("per_token_divergence", "entropy", "student_mass", "teacher_mass", "overlap")
#: Those of the sampled tokens behind them, where these are given.
SAMPLED_STATS = ("sampled_log_ratio", "teacher_rank")


def distillation_loss(
    student: NextToken, teacher: LossTeacher, tokens: Tokens, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over tokens of weight x divergence: `opd_trl.losses.chunked_support_loss` with its arguments in four.

    Args:
        student: carries the gradient, in its hidden states and wherever its head requires one.
        teacher: at the same N positions, by its head, as a mean of several, or by log-probabilities on its TopK;
            never a gradient.
        tokens: the N sampled tokens and their weights.
        objective: which divergence, on which support, at which temperature.

    Returns:
        loss: scalar.
        stats: name -> detached `(N,)`.

    Raises:
        ValueError: arguments that do not fit together.
    """
    chunk_teacher = teacher.as_teacher(student, tokens, objective)
    objective.check(tokens)
    tokens.check(len(student))
    head, chunk_size = student.head, objective.chunk_size
    if chunk_size is None:
        chunk_size = chunk_size_for(head.weight.size(0), head.weight.device)
    loss, *stats = FusedHeadLoss.apply(
        student.hidden_states,
        head.weight,
        head.bias,
        head.transform(objective.temperature),
        chunk_teacher,
        tokens,
        objective,
        chunk_size,
        torch.is_grad_enabled(),
    )
    names = STATS if tokens.ids is None else (*STATS, *SAMPLED_STATS)
    return loss, dict(zip(names, stats, strict=True))


class FusedHeadLoss(torch.autograd.Function):
    """The pass of `distillation_loss`; backward multiplies the stored gradients by the incoming scalar.

    Two `(chunk, V)` tensors live at a time, the logits of student and teacher; a dense gradient overwrites the
    student's. What is computed element by element has the size of a block, which on a CPU stays in its caches.
    """

    @staticmethod
    def forward(
        ctx,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transform: LogitTransform,
        chunk_teacher: ChunkTeacher,
        tokens: Tokens,
        objective: Objective,
        chunk_size: int,
        grad_enabled: bool,
    ):
        wanted = tuple(grad_enabled and need for need in ctx.needs_input_grad[:3])
        gradients = HeadGradients((hidden_states, weight, bias), wanted)
        options = {"want_gradient": any(wanted), "hidden_size": hidden_states.size(-1)}
        total = hidden_states.new_zeros((), dtype=torch.promote_types(hidden_states.dtype, torch.float32))
        stats: list[tuple[Tensor, ...]] = []
        weight = in_compute_dtype(weight)
        with torch.autocast(weight.device.type, enabled=False):
            for rows in chunks(hidden_states.size(0), chunk_size):
                raw = project(hidden_states[rows], weight, bias)
                teacher, of_chunk = chunk_teacher(rows), tokens.rows(rows)
                losses, gradient = [], RawGradient(raw, transform)
                for block in chunks(raw.size(0), block_size_for(raw.size(1), raw.device)):
                    logits = transform.apply(raw[block])
                    loss, by_logits, figures = block_loss(
                        logits, teacher(block), of_chunk.rows(block), objective, **options
                    )
                    losses.append(loss)
                    stats.append(figures)
                    if by_logits is not None:
                        gradient.put(block, by_logits, logits)
                total += torch.stack(losses).sum()
                del teacher, logits, by_logits  # the teacher's logits make room for the products of the gradient
                if any(wanted):
                    gradients.add(rows, gradient.whole(), hidden_states[rows], weight)
                del raw, gradient  # before the next chunk is projected
        ctx.grads = gradients.in_dtypes_of_inputs()
        outputs = [torch.cat(parts) for parts in zip(*stats, strict=True)]
        ctx.mark_non_differentiable(*outputs)
        return total, *outputs

    @staticmethod
    def backward(ctx, grad_loss: Tensor, *_):
        grads = ctx.grads
        if grads is None:
            raise RuntimeError("this loss was differentiated before. Call the first backward with retain_graph=True.")
        if torch._C._autograd._get_current_graph_task_keep_graph():
            grads = [None if grad is None else grad.clone() for grad in grads]
        else:  # nobody needs them again: scale in place and hand them over, no second (V, H) tensor
            ctx.grads = None
        return *(None if grad is None else grad.mul_(grad_loss) for grad in grads), *[None] * 6


class RawGradient:
    """dL/draw of a chunk, put together from dL/dlogits of its blocks.

    Args:
        raw: `(n, V)`, raw outputs of the head; dense gradients overwrite them.
        transform: from raw outputs to logits.
    """

    def __init__(self, raw: Tensor, transform: LogitTransform):
        self.raw, self.transform = raw, transform
        self.sparse: list[LogitGradient] = []

    def put(self, block: slice, gradient: LogitGradient, logits: Tensor) -> None:
        """Add the gradient of a block in its `logits` `(b, V)`."""
        ids = gradient.ids
        values = self.transform.chain(gradient.values, take(logits, ids))
        if ids is None:
            self.raw[block] = values
        else:
            self.sparse.append(LogitGradient(values, ids))

    def whole(self) -> LogitGradient:
        """The gradient of all blocks together, in their order."""
        return (
            LogitGradient(*map(torch.cat, zip(*self.sparse, strict=True))) if self.sparse else LogitGradient(self.raw)
        )


def block_loss(
    logits: Tensor,
    teacher: TeacherBlock,
    tokens: Tokens,
    objective: Objective,
    *,
    want_gradient: bool,
    hidden_size: int,
) -> tuple[Tensor, LogitGradient | None, tuple[Tensor, ...]]:
    """Loss of a block, its gradient in `logits`, and the figures of `STATS` and `SAMPLED_STATS`.

    With g_k = dL/dlog p_k: dL/dz_j = g_j 1_S(j) - p_j sum_k g_k.

    Args:
        logits: `(n, V)`, the student's, at the temperature of the objective.
        teacher: its distributions for the same tokens.
        tokens: the n sampled tokens.
        objective: how both are compared.
        want_gradient: without it the second result is None.
        hidden_size: H of the student.
    """
    teacher_ids = teacher.top_ids
    student_ids = top_ids(logits, teacher_ids.size(-1))
    ids, mask = objective.choose_ids(student_ids, teacher_ids, tokens.ids)
    teacher_log_probs, teacher_of_sampled = teacher_log_probs_at(teacher, ids, tokens.ids, objective)
    probs, log_normalizer = normalize(logits, student_ids)
    student = take(logits, ids) - log_normalizer
    entropy = log_normalizer.squeeze(-1) - torch.linalg.vecdot(probs, logits)
    overlap = is_member(student_ids, teacher_ids).to(logits.dtype).mean(-1)
    weights, of_sampled = tokens.weights, ()
    if tokens.ids is not None:
        sampled = (take(logits, tokens.ids.unsqueeze(-1)) - log_normalizer).squeeze(-1)
        of_sampled = sampled_figures(sampled, teacher_of_sampled, tokens.ids, teacher_ids)
    importance = None
    if objective.weighs(tokens):
        importance = importance_weight(sampled, tokens.sampling_logps, cap=objective.importance_cap)
        weights = weights if objective.samples_tail else weights * importance
    baseline = expected_advantage(probs, logits, log_normalizer, student_ids, teacher, objective)
    masses = [(x.exp() if mask is None else x.exp() * mask).sum(-1) for x in (student, teacher_log_probs)]

    with torch.set_grad_enabled(want_gradient):
        student.requires_grad_(want_gradient)
        if objective.support == "sampled":
            values, reported = loss_of_sampled(student, teacher_log_probs, baseline, tokens, objective)
        elif objective.samples_tail:
            values = reported = sampled_tail_divergence(
                student[:, :-1],
                teacher_log_probs[:, :-1],
                student[:, -1],
                teacher_of_sampled,
                tail_weight=tail_weight(tokens.ids, ids, mask, tokens.student_wrote, importance),
                support_mask=mask[:, :-1],
            )
        else:
            values = reported = support_divergence(
                student,
                teacher_log_probs,
                divergence=objective.divergence,
                beta=objective.beta,
                tail="drop" if objective.support == "full" else objective.tail,
                stop_gradient=objective.stop_gradient,
                support_mask=mask,
                pointwise_clip=objective.pointwise_clip,
            )
        loss = (values * weights).sum()
    gradient = None
    if want_gradient:
        (by_log_prob,) = torch.autograd.grad(loss, student)
        sizes = {"num_ids": student.size(-1), "vocab_size": logits.size(-1), "hidden_size": hidden_size}
        on_support = objective.gradient_stays_on_support(**sizes)
        gradient = LogitGradient(by_log_prob, ids) if on_support else dense_gradient(by_log_prob, ids, probs)
    return loss.detach(), gradient, (reported.detach(), entropy, *masses, overlap, *of_sampled)


def teacher_log_probs_at(
    teacher: TeacherBlock, ids: Tensor | None, completion_ids: Tensor | None, objective: Objective
) -> tuple[Tensor, Tensor | None]:
    """The teacher's log-probabilities of the support `(n, K)` and of the sampled tokens `(n,)`, asked for at once."""
    if completion_ids is None:
        return teacher.at(ids), None
    sampled = completion_ids.unsqueeze(-1)
    if ids is None:
        log_probs = teacher.at(None)
        return log_probs, log_probs.gather(-1, sampled).squeeze(-1)
    if objective.reads_sampled:
        log_probs = teacher.at(ids)
        return log_probs, log_probs[:, -1]
    log_probs = teacher.at(torch.cat([ids, sampled], dim=-1))
    return log_probs[:, :-1], log_probs[:, -1]


def expected_advantage(
    probs: Tensor,
    logits: Tensor,
    log_normalizer: Tensor,
    student_ids: Tensor,
    teacher: TeacherBlock,
    objective: Objective,
) -> Tensor | None:
    """The baseline of a sampled token: minus the reverse KL `(n,)`, the mean of log q_y - log p_y over y ~ p.

    Over the vocabulary, or between the distributions that are renormalised on the student's TopK.
    """
    if objective.baseline is None:
        return None
    if objective.baseline == "top_k":
        return -support_divergence(take(logits, student_ids), teacher.at(student_ids), tail="renormalize")
    return torch.linalg.vecdot(probs, teacher.at(None) - (logits - log_normalizer))


def loss_of_sampled(
    student: Tensor, teacher: Tensor, baseline: Tensor | None, tokens: Tokens, objective: Objective
) -> tuple[Tensor, Tensor]:
    """The policy gradient on each sampled token, and the estimate log p_y - log q_y that is reported, `(n,)` both.

    Args:
        student, teacher: `(n, 1)`, log p_y and log q_y.
        baseline: `(n,)` or None, subtracted from the advantage.
        tokens: for `reference_logps`.
        objective: for `extrapolation`.
    """
    student, teacher = student.squeeze(-1), teacher.squeeze(-1)
    target = teacher
    if objective.extrapolation != 1.0:
        target = extrapolated_logps(teacher, tokens.reference_logps, factor=objective.extrapolation)
    return sampled_token_loss(student, target, baseline=baseline), student - teacher


def dense_gradient(by_log_prob: Tensor, ids: Tensor | None, probs: Tensor) -> LogitGradient:
    """g_j 1_S(j) - p_j sum_k g_k over the whole vocabulary, from g `(n, K)`; overwrites `probs` `(n, V)`."""
    dense = probs.mul_(-by_log_prob.sum(-1, keepdim=True))
    return LogitGradient(dense.add_(by_log_prob) if ids is None else dense.scatter_add_(-1, ids, by_log_prob))
