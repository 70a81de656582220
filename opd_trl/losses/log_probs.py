"""Log-probabilities of chosen tokens from hidden states, without [tokens, vocabulary]; differentiable."""

import torch
from torch import Tensor

from .head import (
    HeadGradients,
    LogitGradient,
    LogitTransform,
    check_rows,
    chunk_size_for,
    chunks,
    in_compute_dtype,
    project,
    top_ids,
)
from .support import check_top_k


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
    if (ids is None) == (top_k is None):
        raise ValueError("give exactly one of ids (which tokens to score) and top_k (the K most probable ones).")
    if top_k is not None:
        check_top_k(top_k, lm_head_weight.size(0))
    else:
        check_rows(hidden_states.size(0), ids=ids.shape[:-1])
    if chunk_size is None:
        chunk_size = chunk_size_for(lm_head_weight.size(0), lm_head_weight.device)
    transform = LogitTransform(temperature, logit_scale, final_logit_softcapping)
    return RecomputedLogProbs.apply(hidden_states, lm_head_weight, bias, ids, top_k, transform, chunk_size)


class RecomputedLogProbs(torch.autograd.Function):
    """The chunks of `chunked_support_log_probs`; backward projects them again."""

    @staticmethod
    def forward(ctx, hidden_states, weight, bias, ids, top_k, transform, chunk_size):
        compute_weight = in_compute_dtype(weight)
        parts = []
        with torch.autocast(weight.device.type, enabled=False):
            for rows in chunks(hidden_states.size(0), chunk_size):
                logits = transform.apply(project(hidden_states[rows], compute_weight, bias))
                log_probs = logits.log_softmax(-1)
                at = top_ids(logits, top_k) if ids is None else ids[rows]
                parts.append((log_probs.gather(-1, at), at, -(log_probs.exp() * log_probs).sum(-1)))
        log_probs, ids, entropy = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(hidden_states, weight, bias, ids, entropy)
        ctx.transform, ctx.chunk_size, ctx.compute_dtype = transform, chunk_size, compute_weight.dtype
        ctx.mark_non_differentiable(ids)
        return log_probs, ids, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_log_probs, _, grad_entropy):
        """dL/dz_j = g_j 1_S(j) - p_j sum_k g_k - e p_j (log p_j + entropy), with e = dL/dentropy."""
        hidden_states, weight, bias, ids, entropy = ctx.saved_tensors
        gradients = HeadGradients((hidden_states, weight, bias), ctx.needs_input_grad[:3])
        weight = weight.to(ctx.compute_dtype)
        with torch.autocast(weight.device.type, enabled=False):
            for rows in chunks(hidden_states.size(0), ctx.chunk_size):
                logits = ctx.transform.apply(project(hidden_states[rows], weight, bias))
                log_probs = logits.log_softmax(-1)
                by_entropy = (log_probs + entropy[rows, None]).mul_(grad_entropy[rows, None])
                gradient = log_probs.exp_().mul_(by_entropy.add_(grad_log_probs[rows].sum(-1, keepdim=True))).neg_()
                gradient.scatter_add_(-1, ids[rows], grad_log_probs[rows])
                gradients.add(rows, LogitGradient(ctx.transform.chain(gradient, logits)), hidden_states[rows], weight)
        return *gradients.in_dtypes_of_inputs(), None, None, None, None
