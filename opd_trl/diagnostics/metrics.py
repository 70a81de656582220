"""From per-token tensors to the figures of a log line."""

import torch
from torch import Tensor


# statistic of the loss -> metric name
METRICS = {
    "per_token_divergence": "distillation/per_token_divergence",
    "student_mass": "support/student_mass",
    "teacher_mass": "support/teacher_mass",
    "overlap": "support/overlap",
    "entropy": "entropy",
}


def token_sums(stats: dict[str, Tensor]) -> Tensor:
    """Sums over tokens of the statistics in `METRICS`' order, then the number of tokens: `(len(METRICS) + 1,)`.

    Sums and counts of several ranks and teachers add up, so that the means weigh every token alike.
    """
    count = stats["entropy"].new_tensor(stats["entropy"].numel())
    return torch.stack([*(stats[name].sum() for name in METRICS), count])


def token_means(sums: Tensor) -> dict[str, float]:
    """Metric name -> mean per token, from (added up) `token_sums`; zeros where no token was kept."""
    *totals, count = sums.tolist()
    return {metric: total / max(count, 1.0) for metric, total in zip(METRICS.values(), totals, strict=True)}


def divergence_by_teacher(names: list[str], sums: Tensor) -> dict[str, float]:
    """Metric name -> mean divergence per token, of each teacher with a token in `sums`, `(teachers, M + 1)`."""
    metric = METRICS["per_token_divergence"]
    return {f"{metric}/{name}": token_means(row)[metric] for name, row in zip(names, sums, strict=True) if row[-1] > 0}
