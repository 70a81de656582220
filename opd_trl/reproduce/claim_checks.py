"""What each claim wants to see, against what was seen."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..evaluation.statistics import Interval
from .confusion import Line, Results
from .intervals import paired
from .settings import Settings


@dataclass(frozen=True)
class Check:
    """One comparison that a claim makes, and how it came out.

    Attributes:
        claim: name of the claim.
        above, below: the sides, as the settings say them.
        difference: above minus below, over the seeds that both have; None without one.
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
    return [
        Check(claim.name, above, below, paired(figure(settings, results, below), figure(settings, results, above)))
        for claim in settings.claims.values()
        for above, below in claim.checks
    ]


def figure(settings: Settings, results: Results, side: str) -> dict[int, float]:
    """What a side of a check stands for, by seed.

    Args:
        settings: of the study.
        results: of the study.
        side: an arm, for its outcome; `arm:before` and `arm:teacher` for that of its student before and of its
            teacher; `arm:NAME` for a figure of the trained student, a log name at the end of training, or a finding of
            the pre-flight.
    """
    name, _, what = side.partition(":")
    if name not in settings.arms:
        return {}
    arm = settings.arms[name]
    if what in ("before", "teacher"):
        return getattr(results, what)(arm, arm.outcome)
    found = (getter(arm, what or arm.outcome) for getter in (results.after, results.last, results.foreseen))
    return next((values for values in found if values), {})
