"""The figures of a micro-batch, over all processes, into TRL's metrics."""

import torch
from accelerate.logging import get_logger
from torch import Tensor

from ..diagnostics import METRICS, divergence_by_teacher, dropped_tail_advice, token_means, token_sums
from .routing import is_routed
from .scores import Scores
from .scoring import stop_at_broken_teacher


logger = get_logger(__name__)


def log_distillation(trainer, stats: dict[str, dict[str, Tensor]], inputs, scores: dict[str, Scores]) -> None:
    """Log the means over tokens, and warn once of a dropped tail that is heavy.

    Args:
        trainer: whose metrics they become.
        stats: of each teacher, from the loss.
        inputs, scores: the micro-batch and what the teachers say of it; named where a teacher is broken.

    Raises:
        FloatingPointError: a teacher's figures are not finite.
    """
    if not all(figures["teacher_mass"].isfinite().all() for figures in stats.values()):
        stop_at_broken_teacher(trainer, inputs, scores)
    # A rank on which a teacher has no row adds zeros.
    sums = torch.zeros(len(trainer.teachers), len(METRICS) + 1, device=trainer.accelerator.device)
    for row, name in zip(sums, trainer.teachers, strict=True):
        if name in stats:
            row += token_sums(stats[name])
    sums = trainer.accelerator.reduce(sums, reduction="sum")
    means = token_means(sums.sum(0))
    if trainer._policy_is_active:
        del means["entropy"]  # GRPO logs it
    if is_routed(trainer.teachers):
        means |= divergence_by_teacher(list(trainer.teachers), sums)
    for name, value in means.items():
        trainer._own_metrics[name].append(value)
    if trainer._may_warn_of_dropped_tail and means["support/student_mass"] > 0:
        advice = dropped_tail_advice(means["support/student_mass"])
        if advice is not None:
            trainer._may_warn_of_dropped_tail = False
            logger.warning(advice)
