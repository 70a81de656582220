"""Floor 1: per-token tensors to figures, figures to pictures."""

from .metrics import METRICS, token_means, token_sums
from .rules import broken_teacher_message, dropped_tail_advice


__all__ = ["METRICS", "broken_teacher_message", "dropped_tail_advice", "token_means", "token_sums"]
