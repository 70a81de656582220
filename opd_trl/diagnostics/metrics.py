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
#: Turns of a rollout that have figures of their own; those behind them share one more.
TURNS = ("1", "2", "3", "4", "5", "later")
#: Statistic of the loss -> the last part of its name by turn.
BY_TURN = {
    "per_token_divergence": "divergence",
    "entropy": "entropy",
    "student_mass": "student_mass",
    "teacher_mass": "teacher_mass",
}
TURN_FIGURES = tuple(f"distillation/turn_{turn}/{name}" for name in BY_TURN.values() for turn in TURNS)
#: All figures, in the order of `token_sums`.
FIGURES = (
    *METRICS.values(),
    *(f"distillation/divergence_q{quartile}" for quartile in (1, 2, 3, 4)),
    "distillation/sampled_log_ratio",
    "distillation/log_ratio_repeated",
    "distillation/log_ratio_other",
    "teacher/sampled_rank",
    "teacher/sampled_outside",
    "distillation/token_weight",
    "completions/repetition",
    *TURN_FIGURES,
    "completions/turns",
    "tokens/computed_per_real",
)


def token_sums(
    stats: dict[str, Tensor],
    *,
    quartile: Tensor,
    repeated: Tensor,
    repetition: Tensor,
    top_k: int,
    turn: Tensor | None = None,
    turns: Tensor | None = None,
) -> Tensor:
    """Sum and count of each of `FIGURES` but the last, which is of the step and not of its tokens: `(..., 2)`.

    Sums and counts of several ranks and teachers add up, so that the means weigh every token (every completion, for
    its repetition) alike. What is NaN counts nowhere.

    Args:
        stats: `(N,)` tensors from the loss, with those of the sampled tokens; `token_weight` where there are weights.
        quartile: `(N,)`, from `position_quartiles`.
        repeated: `(N,)` bool, from `repeated_trigrams`.
        repetition: `(b,)`, of the completions that the tokens belong to, from `opd_trl.diagnostics.repetition`.
        top_k: K of the teacher's TopK, its rank of a token outside.
        turn: `(N,)`, the turn of a rollout that each token belongs to, from 1 on; None where there are no tools.
        turns: `(b,)`, how many turns the completions have.
    """
    divergence, log_ratio, rank = (stats[x] for x in ("per_token_divergence", "sampled_log_ratio", "teacher_rank"))
    everywhere, repeated = torch.ones_like(rank, dtype=torch.bool), repeated.bool()
    rows = [(stats[name], everywhere) for name in METRICS]
    rows += [(divergence, quartile == i) for i in range(4)]
    rows += [(log_ratio, everywhere), (log_ratio, repeated), (log_ratio, ~repeated)]
    rows += [(rank, everywhere), ((rank >= top_k).to(rank.dtype), ~rank.isnan())]
    rows += [(stats.get("token_weight", torch.full_like(rank, torch.nan)), everywhere)]
    values, counted = (torch.stack(list(x)) for x in zip(*rows, strict=True))
    of_completions = sums_and_counts(repetition.to(values.dtype), torch.ones_like(repetition, dtype=torch.bool))
    by_turn = values.new_zeros(len(TURN_FIGURES) + 1, 2)
    if turn is not None:
        by_turn = torch.cat([turn_sums(stats, turn), sums_and_counts(turns.to(values.dtype), turns > 0).unsqueeze(0)])
    return torch.cat([sums_and_counts(values, counted), of_completions.unsqueeze(0), by_turn])


def turn_sums(stats: dict[str, Tensor], turn: Tensor) -> Tensor:
    """Sum and count of each of `TURN_FIGURES`: `(figures, 2)`.

    >>> sums = turn_sums({name: torch.tensor([1.0, 2.0, 4.0]) for name in BY_TURN}, torch.tensor([1, 1, 7]))
    >>> dict(zip(TURN_FIGURES[:6], sums[:6].tolist()))["distillation/turn_later/divergence"], sums[0].tolist()
    ([4.0, 1.0], [3.0, 2.0])
    """
    place = torch.arange(1, len(TURNS) + 1, device=turn.device)
    at = turn.clamp(max=len(TURNS)) == place[:, None]
    values = torch.stack([stats[name] for name in BY_TURN])
    return sums_and_counts(values[:, None], at[None]).flatten(0, 1)


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


#: Bits of one token id in the packed 3-gram: three of them fit into 63, and vocabularies stay below 2^21.
ID_BITS = 21


def position_quartiles(completion_mask: Tensor) -> Tensor:
    """Quartile 0 to 3 of each position within its own completion: floor(4 t / length).

    A completion of fewer than four tokens leaves quartiles empty.

    Args:
        completion_mask: `(B, T)`, 1 up to the end of each completion.

    Returns:
        `(B, T)` int64; meaningless behind the end.

    Example:
        >>> position_quartiles(torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]))[:, :5].tolist()
        [[0, 0, 1, 2, 3], [0, 2, 3, 3, 3]]
    """
    length = completion_mask.sum(-1, keepdim=True).clamp(min=1)
    place = torch.arange(completion_mask.size(-1), device=completion_mask.device)
    return (4 * place // length).clamp(max=3)


def repeated_trigrams(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Which tokens complete a 3-gram that the same completion holds already.

    Args:
        completion_ids: `(B, T)` int64.
        completion_mask: `(B, T)`, 1 up to the end of each completion.

    Returns:
        `(B, T)` bool.

    Example:
        >>> ids = torch.tensor([[5, 6, 7, 5, 6, 7, 7, 7, 7]])
        >>> repeated_trigrams(ids, torch.ones_like(ids)).int().tolist()
        [[0, 0, 0, 0, 0, 1, 0, 0, 1]]
    """
    trigram = completion_ids << 2 * ID_BITS
    trigram[:, 1:] += completion_ids[:, :-1] << ID_BITS
    trigram[:, 2:] += completion_ids[:, :-2]
    place = torch.arange(completion_ids.size(-1), device=completion_ids.device)
    # What is not a 3-gram of the completion gets a number of its own.
    trigram = torch.where((place >= 2) & completion_mask.bool(), trigram, -1 - place)
    ordered, order = trigram.sort(dim=-1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(repeated).scatter(-1, order, repeated)


def repetition(repeated: Tensor, completion_mask: Tensor) -> Tensor:
    """1 - distinct 3-grams / 3-grams of each completion.

    Args:
        repeated: `(B, T)` bool, from `repeated_trigrams`.
        completion_mask: `(B, T)`.

    Returns:
        `(B,)` float32; NaN for a completion of fewer than three tokens.

    Source: the 3-gram repetition of arXiv 2605.11182, which goes 0.513, 0.792, 0.998 while a run collapses.

    Example:
        >>> ids = torch.tensor([[5, 6, 7, 5, 6, 7, 7, 7, 7], [1, 2, 0, 0, 0, 0, 0, 0, 0]])
        >>> mask = (ids > 0).long()
        >>> repetition(repeated_trigrams(ids, mask), mask)  # 2 of 7
        tensor([0.2857,    nan])
    """
    trigrams = (completion_mask.sum(-1) - 2).float()
    return torch.where(trigrams > 0, repeated.sum(-1) / trigrams, torch.nan)
