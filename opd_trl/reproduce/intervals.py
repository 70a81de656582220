"""Means over seeds: each seed has models and data of its own, so an interval holds all that differs between runs."""

import math
import statistics
from collections.abc import Mapping, Sequence

from ..evaluation.statistics import Interval


# Quantiles 0.975 of Student's t for 1 to 9 degrees of freedom (any table of the distribution).
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of one value per seed, and Student's 95 % interval; one seed alone has no interval: NaN.

    Raises:
        ValueError: no value, or more than ten.

    Example:
        >>> [round(x, 3) for x in t_interval([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    if not 1 <= len(values) <= len(T_QUANTILES) + 1:
        raise ValueError(f"an interval over seeds takes 1 to {len(T_QUANTILES) + 1} values, got {len(values)}.")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    half = T_QUANTILES[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Interval | None:
    """Mean of second minus first over the seeds that both have, and its interval; None where they share none.

    >>> paired({0: 0.1, 1: 0.2}, {0: 0.4, 1: 0.5, 2: 0.9}).value.__round__(3)
    0.3
    """
    shared = sorted(first.keys() & second.keys())
    return t_interval([second[seed] - first[seed] for seed in shared]) if shared else None


def shown(interval: Interval | None, *, sign: bool = False) -> str:
    """`0.50 [0.41, 0.59]`; without ends where there are none.

    >>> shown(Interval(0.5, 0.41, 0.59)), shown(Interval(0.5, math.nan, math.nan), sign=True), shown(None)
    ('0.50 [0.41, 0.59]', '+0.50', '')
    """
    if interval is None:
        return ""
    form = "+.2f" if sign else ".2f"
    # Adding zero makes a rounded -0.0 a plain zero.
    value, low, high = (format(round(x, 2) + 0.0, form) for x in interval)
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"
