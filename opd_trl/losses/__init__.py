"""Floor 1: distillation losses as pure functions of tensors; torch alone.

One value per token, keyword-only options, nats, float32. The gradients are proven in closed form in `tests/losses`.
"""

from .chunked import chunked_loss_from_log_probs, chunked_support_log_probs, chunked_support_loss
from .divergences import forward_kl, generalized_jsd, reverse_kl
from .head import chunk_size_for
from .objective import extrapolated_logps, importance_weight, masked_mean, sampled_token_loss
from .sampled_tail import sampled_tail_divergence
from .support import select_support, support_divergence


__all__ = [
    "chunk_size_for",
    "chunked_loss_from_log_probs",
    "chunked_support_log_probs",
    "chunked_support_loss",
    "extrapolated_logps",
    "forward_kl",
    "generalized_jsd",
    "importance_weight",
    "masked_mean",
    "reverse_kl",
    "sampled_tail_divergence",
    "sampled_token_loss",
    "select_support",
    "support_divergence",
]
