"""Floor 0: distillation losses as pure functions of tensors; torch alone.

One value per token, keyword-only options, nats, float32. The gradients are proven in closed form in `tests/losses`.
"""

from .chunked import chunked_support_loss
from .chunking import chunk_size_for
from .divergences import forward_kl, generalized_jsd, reverse_kl
from .from_log_probs import chunked_loss_from_log_probs
from .log_probs import chunked_support_log_probs
from .reduction import masked_mean
from .sampled import extrapolated_logps, sampled_token_loss
from .support import select_support, support_divergence
from .tokens import importance_weight


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
    "sampled_token_loss",
    "select_support",
    "support_divergence",
]
