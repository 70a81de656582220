"""From what a trial has measured to one of three words: works, harms, unclear."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...evaluation.statistics import Interval, bootstrap_interval, paired_difference


#: Figures by which a trial is judged: the first where answers can be scored, and the exact divergence.
SCORE, DIVERGENCE = "score", "divergence"
#: Of the runs that nothing was chosen on (docs/evidence.md): how many with this word, after a trial of 20 steps, ended
#: better than they began, of how many.
ENDED_BETTER = {"works": (126, 127), "unclear": (10, 24), "harms": (3, 21)}


class Change(NamedTuple):
    """A figure before and after the trial, and its change in pairs of prompts, with intervals of 95 %."""

    before: Interval
    after: Interval
    change: Interval

    @property
    def direction(self) -> int:
        """1: risen beyond its interval, -1: fallen, 0: neither."""
        return (self.change.low > 0) - (self.change.high < 0)


def changes(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> dict[str, Change]:
    """The change of each figure over the prompts that have one on both sides.

    >>> found = changes({"score": [0.0] * 8 + [1.0]}, {"score": [1.0] * 9})
    >>> round(found["score"].change.value, 2), found["score"].direction
    (0.89, 1)
    """
    found = {}
    for name, values in before.items():
        pairs = [(x, y) for x, y in zip(values, after[name], strict=True) if not (math.isnan(x) or math.isnan(y))]
        if len(pairs) > 1:
            first, second = zip(*pairs, strict=True)
            found[name] = Change(
                bootstrap_interval(first), bootstrap_interval(second), paired_difference(first, second)
            )
    return found


def judged(found: Mapping[str, Change], second_half: Mapping[str, Change] | None = None) -> str:
    """works, harms or unclear.

    harms: the divergence has risen beyond its interval, or the score has fallen, and the second half of the trial has
    not begun to mend it. works: nothing has become worse, and the divergence has fallen or the score has risen.
    unclear: all else, also what fell first and rises again: many a run with a high rate ends well nevertheless.

    Args:
        found: changes from before to after.
        second_half: changes from half-way to after; None: there was no look half-way.
    """
    score, divergence = directions(found)
    if score < 0 or divergence > 0:
        score, divergence = directions(second_half or {})
        mending = (score > 0 or divergence < 0) and not (score < 0 or divergence > 0)
        return "unclear" if mending else "harms"
    return "works" if score > 0 or divergence < 0 else "unclear"


def directions(found: Mapping[str, Change]) -> tuple[int, int]:
    """Of the score and of the divergence; 0 where there is none."""
    score, divergence = (found[name].direction if name in found else 0 for name in (SCORE, DIVERGENCE))
    return score, divergence


def steps_to_decide(change: Interval, steps: int) -> int | None:
    """After how many steps a change would leave its interval, if it goes on as it has begun; None: no direction yet.

    The interval hardly depends on the number of steps, so that the change must grow to half of its width.

    >>> steps_to_decide(Interval(-0.1, -0.3, 0.1), 10)
    20
    """
    return math.ceil(steps * change.half_width / abs(change.value)) if change.value else None
