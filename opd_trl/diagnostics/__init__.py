"""Floor 1: per-token tensors to figures, figures to pictures."""

from .batch_messages import broken_teacher_message, dropped_tail_advice
from .conditions import Condition
from .metrics import (
    FIGURES,
    METRICS,
    TURN_FIGURES,
    divergence_by_teacher,
    position_quartiles,
    repeated_trigrams,
    repetition,
    token_means,
    token_sums,
)
from .monitor import Monitor, MonitorWarning
from .plots import DISTILLATION_PANELS, Panel, plot_run
from .text_kinds import TextKind
from .warning_rules import RULES, Remedy, Rule


__all__ = [
    "DISTILLATION_PANELS",
    "FIGURES",
    "METRICS",
    "RULES",
    "TURN_FIGURES",
    "Condition",
    "Monitor",
    "MonitorWarning",
    "Panel",
    "Remedy",
    "Rule",
    "TextKind",
    "broken_teacher_message",
    "divergence_by_teacher",
    "dropped_tail_advice",
    "plot_run",
    "position_quartiles",
    "repeated_trigrams",
    "repetition",
    "token_means",
    "token_sums",
]
