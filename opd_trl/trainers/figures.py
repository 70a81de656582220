"""The figures of a micro-batch, over all processes, into TRL's metrics."""

import torch
from accelerate.logging import get_logger
from torch import Tensor

from ..diagnostics import (
    FIGURES,
    divergence_by_teacher,
    dropped_tail_advice,
    position_quartiles,
    repeated_trigrams,
    repetition,
    token_means,
    token_sums,
)
from ..teachers.routing import is_routed
from ..teachers.scores import Scores
from .scoring import stop_at_broken_teacher


logger = get_logger(__name__)


def log_distillation(trainer, stats: dict[str, dict[str, Tensor]], inputs, scores: dict[str, Scores]) -> None:
    """Log the means over tokens, keep a sample for the run log, and warn once of a dropped tail that is heavy.

    Args:
        trainer: whose metrics they become.
        stats: of each teacher, from the loss.
        inputs, scores: the micro-batch and what the teachers say of it; named where a teacher is broken.

    Raises:
        FloatingPointError: a teacher's figures are not finite.
    """
    if not all(figures["teacher_mass"].isfinite().all() for figures in stats.values()):
        stop_at_broken_teacher(trainer, inputs, scores)
    sums = trainer.accelerator.reduce(sums_by_teacher(trainer, stats, inputs, scores), reduction="sum")
    means = token_means(sums.sum(0))
    if trainer._policy_is_active:
        means.pop("entropy", None)  # GRPO logs it
    if is_routed(trainer.teachers):
        means |= divergence_by_teacher(list(trainer.teachers), sums)
    for name, value in means.items():
        trainer._own_metrics[name].append(value)
    if trainer.monitor is not None:
        trainer.monitor.take_sample(stats, inputs, scores)
    if trainer._may_warn_of_dropped_tail and "support/student_mass" in means:
        advice = dropped_tail_advice(means["support/student_mass"])
        if advice is not None:
            trainer._may_warn_of_dropped_tail = False
            logger.warning(advice)


def sums_by_teacher(trainer, stats: dict[str, dict[str, Tensor]], inputs, scores: dict[str, Scores]) -> Tensor:
    """`token_sums` of each teacher `(teachers, figures, 2)`; zeros for one that has no row on this rank."""
    ids, mask, kept = inputs["completion_ids"], inputs["completion_mask"], inputs["loss_mask"].bool()
    repeated = repeated_trigrams(ids, mask)
    by_completion = repetition(repeated, mask)
    by_token = torch.stack([position_quartiles(mask), repeated.long()], dim=-1)  # selected at once
    top_k = min(trainer.args.loss_top_k, trainer._num_rows)
    sums = torch.zeros(len(trainer.teachers), len(FIGURES), 2, device=trainer.accelerator.device)
    for row, name in zip(sums, trainer.teachers, strict=True):
        if name in stats:
            select = scores[name].select
            quartile, is_repeated = select(by_token)[select(kept)].unbind(-1)
            row += token_sums(
                stats[name],
                quartile=quartile,
                repeated=is_repeated,
                repetition=select(by_completion),
                top_k=top_k,
            )
    return sums
