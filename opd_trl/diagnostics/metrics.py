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
#: All figures, in the order of `token_sums`.
FIGURES = (
    *METRICS.values(),
    *(f"distillation/divergence_q{quartile}" for quartile in (1, 2, 3, 4)),
    "distillation/sampled_log_ratio",
    "distillation/log_ratio_repeated",
    "distillation/log_ratio_other",
    "teacher/sampled_rank",
    "teacher/sampled_outside",
    "completions/repetition",
)


def token_sums(
    stats: dict[str, Tensor], *, quartile: Tensor, repeated: Tensor, repetition: Tensor, top_k: int
) -> Tensor:
    """Sum and count of each of `FIGURES`, `(len(FIGURES), 2)`.

    Sums and counts of several ranks and teachers add up, so that the means weigh every token (every completion, for
    its repetition) alike. What is NaN counts nowhere.

    Args:
        stats: `(N,)` tensors from the loss, with those of the sampled tokens.
        quartile: `(N,)`, from `position_quartiles`.
        repeated: `(N,)` bool, from `repeated_trigrams`.
        repetition: `(b,)`, of the completions that the tokens belong to, from `opd_trl.diagnostics.repetition`.
        top_k: K of the teacher's TopK, its rank of a token outside.
    """
    divergence, log_ratio, rank = (stats[x] for x in ("per_token_divergence", "sampled_log_ratio", "teacher_rank"))
    everywhere, repeated = torch.ones_like(rank, dtype=torch.bool), repeated.bool()
    rows = [(stats[name], everywhere) for name in METRICS]
    rows += [(divergence, quartile == i) for i in range(4)]
    rows += [(log_ratio, everywhere), (log_ratio, repeated), (log_ratio, ~repeated)]
    rows += [(rank, everywhere), ((rank >= top_k).to(rank.dtype), everywhere)]
    values, counted = (torch.stack(list(x)) for x in zip(*rows, strict=True))
    of_completions = sums_and_counts(repetition.to(values.dtype), torch.ones_like(repetition, dtype=torch.bool))
    return torch.cat([sums_and_counts(values, counted), of_completions.unsqueeze(0)])


def sums_and_counts(values: Tensor, counted: Tensor) -> Tensor:
    """Sum of `values` `(..., N)` where `counted` and not NaN, and how many these are: `(..., 2)`."""
    counted = counted & ~values.isnan()
    return torch.stack([torch.where(counted, values, 0.0).sum(-1), counted.sum(-1).to(values.dtype)], dim=-1)


def token_means(sums: Tensor) -> dict[str, float]:
    """Figure -> mean, from (added up) `token_sums`; without those that nothing was counted for."""
    return {figure: total / count for figure, (total, count) in zip(FIGURES, sums.tolist(), strict=True) if count > 0}


def divergence_by_teacher(names: list[str], sums: Tensor) -> dict[str, float]:
    """Metric name -> mean divergence per token, of each teacher with a token in `sums`, `(teachers, figures, 2)`."""
    metric = METRICS["per_token_divergence"]
    means = {name: token_means(row) for name, row in zip(names, sums, strict=True)}
    return {f"{metric}/{name}": found[metric] for name, found in means.items() if metric in found}
