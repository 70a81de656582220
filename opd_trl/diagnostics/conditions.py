"""What can be asked of a series of log lines: has it fallen, risen, levelled off, is it finite."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from statistics import fmean, variance
from typing import Literal, NamedTuple


Kind = Literal[
    "fell_by", "rose_by", "shrank_to", "grew_to", "sank_to", "held_at", "above", "below", "zero", "not_finite"
]


class Reading(NamedTuple):
    """What a condition says of a series.

    Attributes:
        holds: does it hold?
        value: the mean of the last lines, or the last line.
        threshold: what it is compared with, in the unit of the figure.
        first: the mean of the first lines, where the comparison is with them.
    """

    holds: bool
    value: float
    threshold: float
    first: float | None = None


@dataclass(frozen=True)
class Condition:
    """A question about one figure of a run.

    Attributes:
        figure: name in a log line; with a `*`, the mean of all that it fits.
        kind: "fell_by", "rose_by": the last window lies `threshold` below, above the run's own first window;
            "shrank_to", "grew_to": below, above `threshold` times the first window, all four by more than the lines of
            both windows scatter (`CERTAIN` standard errors); "sank_to": "shrank_to" for figures that scatter much, by
            four standard errors, taken from neighbouring lines, so that a fall inside the first window is no noise;
            "held_at": above the first window's share, and not below 97 % of the window before; "above", "below": every
            line of the last window lies there; "zero": within `threshold` of zero; "not_finite": NaN or infinite.
        threshold: in the unit of the figure, or a factor.
        minus: a figure that is subtracted first.
        stand_in: a figure that is judged in a line that lacks the first one.
        absent: what the figure counts as in a line of training that lacks both; None: such a line is not judged.
    """

    figure: str
    kind: Kind
    threshold: float = 0.0
    minus: str | None = None
    stand_in: str | None = None
    absent: float | None = None

    def figure_in(self, line: dict[str, float | None]) -> float | None:
        """The value of the figure in a log line, `minus` subtracted; None where one of them is not there."""
        absent = line.get(self.stand_in, self.absent if "loss" in line else None)
        value = self.mean_in(line) if "*" in self.figure else line.get(self.figure, absent)
        other = 0.0 if self.minus is None else line.get(self.minus)
        return None if value is None or other is None else float(value) - float(other)

    def mean_in(self, line: dict[str, float | None]) -> float | None:
        """The mean of all figures of a log line that fit the pattern; None where there is none."""
        fits = [value for name, value in line.items() if fnmatchcase(name, self.figure) and value is not None]
        return fmean(fits) if fits else None

    def read(self, series: Sequence[float], window: int) -> Reading | None:
        """Ask it of the finite values so far, for "not_finite" of the last value; None while there are too few.

        Example:
            >>> Condition("support/student_mass", "fell_by", 0.05).read([1.0, 1.0, 0.5, 0.5], window=2)
            Reading(holds=True, value=0.5, threshold=0.95, first=1.0)
        """
        if len(series) < LINES[self.kind](window):
            return None
        return READERS[self.kind](series, window, self.threshold)

    @property
    def name(self) -> str:
        """The figure as messages and the run log name it: `figure`, or `figure - minus`."""
        return self.figure if self.minus is None else f"{self.figure} - {self.minus}"


# Standard errors by which the means of two windows must differ: batches are small and a run has many windows.
CERTAIN = 3.0
# The same for figures that scatter much: of 100 lines of pure noise at most 1.3 % of the runs fire.
SURE = 4.0
# A window that is not below this share of the one before has stopped falling.
STILL_FALLING = 0.97

Reader = Callable[[Sequence[float], int, float], Reading]


def of_windows(series: Sequence[float], window: int) -> float:
    """How far the means of the first and the last window may differ by chance, from the scatter in each."""
    return CERTAIN * standard_error(series[:window], series[-window:])


def of_neighbours(series: Sequence[float], window: int) -> float:
    """The same from the steps between neighbouring lines, so that a fall inside a window counts as no scatter."""
    scatter = fmean((b - a) ** 2 for a, b in pairwise(series)) / 2  # the variance of a line around any slow course
    return SURE * math.sqrt(2 * scatter / window)


Noise = Callable[[Sequence[float], int], float]


def against_first(threshold: Callable[[float, float], float], *, falls: bool, noise_of: Noise = of_windows) -> Reader:
    """Compare the last window with a threshold made of the first one's mean, or with the noise where that is more."""

    def read(series: Sequence[float], window: int, given: float) -> Reading:
        first, last = fmean(series[:window]), fmean(series[-window:])
        noise, limit = noise_of(series, window), threshold(first, given)
        limit = min(limit, first - noise) if falls else max(limit, first + noise)
        return Reading(last < limit if falls else last > limit, last, limit, first)

    return read


def standard_error(one: Sequence[float], other: Sequence[float]) -> float:
    """Standard error of the difference of two means, from the scatter in each window; 0 for windows of one line."""
    if len(one) < 2:
        return 0.0
    return math.sqrt((variance(one) + variance(other)) / len(one))


def against_share(*, falls: bool, noise_of: Noise = of_windows) -> Reader:
    """Compare the last window with a share of the first one's mean; nothing holds unless that mean is above zero."""

    def read(series: Sequence[float], window: int, share: float) -> Reading:
        reading = against_first(lambda first, given: first * given, falls=falls, noise_of=noise_of)(
            series, window, share
        )
        return reading._replace(holds=reading.holds and reading.first > 0)

    return read


def held_at(series: Sequence[float], window: int, share: float) -> Reading:
    first, before, last = (fmean(x) for x in (series[:window], series[-2 * window : -window], series[-window:]))
    limit = share * first
    return Reading(first > 0 and last > limit and last >= STILL_FALLING * before, last, limit, first)


READERS: dict[str, Reader] = {
    "fell_by": against_first(lambda first, by: first - by, falls=True),
    "rose_by": against_first(lambda first, by: first + by, falls=False),
    "shrank_to": against_share(falls=True),
    "grew_to": against_share(falls=False),
    "sank_to": against_share(falls=True, noise_of=of_neighbours),
    "held_at": held_at,
    "above": lambda series, window, level: Reading(min(series[-window:]) > level, fmean(series[-window:]), level),
    "below": lambda series, window, level: Reading(max(series[-window:]) < level, fmean(series[-window:]), level),
    "zero": lambda series, window, level: Reading(max(map(abs, series[-window:])) <= level, series[-1], level),
    "not_finite": lambda series, window, _: Reading(not math.isfinite(series[-1]), series[-1], math.inf),
}
#: Lines that a question needs: windows that are compared do not share any.
LINES: dict[str, Callable[[int], int]] = {
    **dict.fromkeys(("fell_by", "rose_by", "shrank_to", "grew_to", "sank_to"), lambda window: 2 * window),
    "held_at": lambda window: 3 * window,
    "above": lambda window: window,
    "below": lambda window: window,
    "zero": lambda window: window,
    "not_finite": lambda window: 1,
}
