"""The LM head in chunks of tokens: log-probabilities from hidden states, without [tokens, vocabulary]."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .support import check_top_k
from .topk import top_ids


# Tokens projected at once. 256 x 49152 float32 logits are 48 MiB, 256 x 151936 are 148 MiB.
CHUNK_SIZE = 256


def chunks(num_tokens: int, chunk_size: int) -> list[slice]:
    """Row slices that cover `num_tokens`; one empty slice for an empty batch, which keeps its graph through it."""
    return [slice(start, start + chunk_size) for start in range(0, max(num_tokens, 1), chunk_size)]


def transform_logits(
    logits: Tensor, *, temperature: float, logit_scale: float, final_logit_softcapping: float | None
) -> Tensor:
    """Scale, soft-cap (cap tanh(z / cap)) and temper raw head outputs `(..., V)`, in this order, as the models do."""
    if logit_scale != 1.0:
        logits = logits * logit_scale
    if final_logit_softcapping is not None:
        logits = final_logit_softcapping * torch.tanh(logits / final_logit_softcapping)
    return logits if temperature == 1.0 else logits / temperature


def transform_slope(
    transformed: Tensor, *, temperature: float, logit_scale: float, final_logit_softcapping: float | None
) -> Tensor | float:
    """Derivative of `transform_logits`, from its result: scale (1 - tanh^2) / T."""
    slope = logit_scale / temperature
    if final_logit_softcapping is None:
        return slope
    return slope * (1 - (transformed * (temperature / final_logit_softcapping)) ** 2)


def check_rows(num_tokens: int, **shapes: tuple[int, ...]) -> None:
    """Raise ValueError unless every named shape is `(num_tokens,)`: a slice or a gather would not notice."""
    for name, shape in shapes.items():
        if tuple(shape) != (num_tokens,):
            raise ValueError(f"{name} must have one row for each of the {num_tokens} tokens, got {tuple(shape)} rows.")


def project(hidden_states: Tensor, lm_head_weight: Tensor, bias: Tensor | None) -> Tensor:
    """Raw logits `(n, V)` in at least float32, multiplied in the dtype of the head (or of autocast)."""
    logits = F.linear(hidden_states.to(lm_head_weight.dtype), lm_head_weight, bias)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def entropy_of(log_probs: Tensor) -> Tensor:
    """-sum_v p_v log p_v over the last dimension, nats."""
    return -(log_probs.exp() * log_probs).sum(-1)


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
    chunk_size: int = CHUNK_SIZE,
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
        chunk_size: positions projected at once; memory is proportional to it, the result does not depend on it.

    Returns:
        log_probs: `(N, K)`, nats, float32 (float64 for float64 inputs); differentiable.
        ids: `(N, K)`.
        entropy: `(N,)` of the whole distribution, nats; differentiable.

    Raises:
        ValueError: both or neither of `ids` and `top_k`, `top_k` out of range, or `ids` of another length.

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

    def score(hidden_states: Tensor, lm_head_weight: Tensor, bias: Tensor | None, ids: Tensor | None):
        logits = transform_logits(
            project(hidden_states, lm_head_weight, bias),
            temperature=temperature,
            logit_scale=logit_scale,
            final_logit_softcapping=final_logit_softcapping,
        )
        log_probs = logits.log_softmax(-1)
        if ids is None:
            ids = top_ids(log_probs.detach(), top_k)
        return log_probs.gather(-1, ids), ids, entropy_of(log_probs)

    results = [
        checkpoint(
            score, hidden_states[rows], lm_head_weight, bias, None if ids is None else ids[rows], use_reentrant=False
        )
        for rows in chunks(hidden_states.size(0), chunk_size)
    ]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
