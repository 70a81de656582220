"""Floor 1: per-token tensors to figures, figures to pictures."""

from .metrics import METRICS, divergence_by_teacher, token_means, token_sums
from .plots import DISTILLATION_PANELS, Panel, plot_run
from .rules import broken_teacher_message, dropped_tail_advice


__all__ = [
    "DISTILLATION_PANELS",
    "METRICS",
    "Panel",
    "broken_teacher_message",
    "divergence_by_teacher",
    "dropped_tail_advice",
    "plot_run",
    "token_means",
    "token_sums",
]
