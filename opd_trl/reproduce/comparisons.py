"""Means over seeds, their differences, and what each claim wants to see of them, against what was seen.

Each seed has models and data of its own, so an interval holds all that differs between runs.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..evaluation.statistics import Interval
from .confusion import Line, Results
from .settings import Claim, Settings


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


def shown(interval: Interval | None, *, sign: bool = False, digits: int = 2) -> str:
    """`0.50 [0.41, 0.59]`; without ends where there are none.

    >>> shown(Interval(0.5, 0.41, 0.59)), shown(Interval(0.5, math.nan, math.nan), sign=True), shown(None)
    ('0.50 [0.41, 0.59]', '+0.50', '')
    """
    if interval is None:
        return ""
    # Adding zero makes a rounded -0.0 a plain zero.
    value, low, high = (f"{round(x, digits) + 0.0:{'+' if sign else ''}.{digits}f}" for x in interval)
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Check:
    """One comparison that a claim makes, and how it came out.

    The sides `above` and `below` are as the settings say them; `difference` is above minus below, over the seeds that
    both have, None without one.
    """

    claim: str
    above: str
    below: str
    difference: Interval | None

    @property
    def verdict(self) -> str:
        """`held`, `the other way`, or what keeps it open.

        >>> [Check("claim", "x", "y", Interval(0.2, low, 0.3)).verdict for low in (0.1, -0.1)]
        ['held', 'not shown']
        """
        if self.difference is None:
            return "not run"
        low, high = self.difference.low, self.difference.high
        if low != low:
            return "one seed"
        return "held" if low > 0 else "the other way" if high < 0 else "not shown"


def checked(settings: Settings, lines: Sequence[Line]) -> list[Check]:
    """All comparisons of all claims, in their order."""
    results = Results.of(lines)
    return [check for claim in settings.claims.values() for check in checks_of(claim, settings, results)]


def checks_of(claim: Claim, settings: Settings, results: Results) -> list[Check]:
    """The comparisons of one claim, in their order."""
    return [
        Check(claim.name, above, below, paired(figure(settings, results, below), figure(settings, results, above)))
        for above, below in claim.checks
    ]


def figure(settings: Settings, results: Results, side: str) -> dict[int, float]:
    """What a side of a check stands for, by seed.

    `arm` is its outcome; `arm:before` and `arm:teacher` are those of its student before and of its teacher; `arm:NAME`
    is a figure of the trained student, a log name at the end of training, or a finding of the pre-flight.
    """
    name, _, what = side.partition(":")
    if name not in settings.arms:
        return {}
    arm = settings.arms[name]
    if what in ("before", "teacher"):
        return getattr(results, what)(arm, arm.outcome)
    found = (getter(arm, what or arm.outcome) for getter in (results.after, results.last, results.foreseen))
    return next((values for values in found if values), {})
