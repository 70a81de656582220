"""Figures of repeated samples, and their intervals: numbers in, numbers out."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


LEVEL = 0.95
RESAMPLES = 10_000
# Resampled values that live at a time.
BLOCK = 4_000_000


class Interval(NamedTuple):
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance between the ends, in the unit of the value."""
        return (self.high - self.low) / 2


def pass_at_k(correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """Probability that at least one of k samples is right, estimated without bias from n of them.

    1 - C(n - c, k) / C(n, k) with c right samples of n, for each problem.

    Args:
        correct: `(..., n)` of 0 and 1.
        k: at most n.

    Returns:
        `(...)`, one value per problem.

    Raises:
        ValueError: k is not in 1..n.

    Source: Chen et al. 2021, arXiv 2107.03374, section 2.1.

    Example:
        >>> pass_at_k([[1, 0, 0, 0], [0, 0, 0, 0]], 2).tolist()
        [0.5, 0.0]
    """
    correct = np.asarray(correct, dtype=float)
    n = correct.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs k from 1 to the {n} samples of a problem, got {k}. Draw more samples.")
    wrong = n - correct.sum(-1)
    # C(w, k) / C(n, k) as a product of ratios: nothing overflows, and w < k has a factor 0.
    steps = np.arange(k)
    return 1 - np.prod((wrong[..., None] - steps) / (n - steps), axis=-1)


def majority(values: Sequence[str | None], correct: Sequence[float]) -> float:
    """Is the answer that most samples of a problem give the right one?

    Samples without an answer have no vote. Right answers are one, however they are spelt. Between answers of equally
    many votes it is the mean: what a fair draw would give.

    Args:
        values: one spelling of each sample's answer; None where it has none.
        correct: 0 or 1 for each.

    Example:
        >>> majority(["7", "7", "8"], [1, 1, 0]), majority(["7", "8", None], [1, 0, 0]), majority([None], [0])
        (1.0, 0.5, 0.0)
    """
    votes: dict[str, list[float]] = defaultdict(list)
    for value, right in zip(values, correct, strict=True):
        if value is not None:
            votes["" if right else value].append(float(right))
    most = max(map(len, votes.values()), default=0)
    winners = [sum(rights) / len(rights) for rights in votes.values() if len(rights) == most]
    return sum(winners) / len(winners) if winners else 0.0


def bootstrap_interval(
    values: ArrayLike,
    *,
    over_seeds: bool = False,
    bounds: tuple[float, float] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over problems and its percentile bootstrap interval.

    In each resample as many problems are drawn, with replacement, as there are; the interval holds the middle `level`
    of the means. Where a problem has several seeds, its mean over them is what is drawn, so that the noise of sampling
    is in the interval. With `over_seeds` the seeds are drawn too, the same ones for all problems: for values whose
    seeds differ as a whole, such as training runs. That counts the noise of sampling twice, so it is the wider one.

    Args:
        values: `(problems,)` or `(problems, seeds)`.
        over_seeds: draw seeds as well as problems.
        bounds: the range of a value. Where all P problems have the same one, no resample shows any other, and the
            exact binomial bound stands in: at most a share x = 1 - (alpha/2)^(1/P) of such problems has another value,
            at worst a bound. All right: [1 - x, 1].
        level: of confidence.
        resamples: drawn samples.
        seed: of the draws.

    Raises:
        ValueError: no problem, or a value that is not finite.

    Source: Efron 1979; two factors: Owen 2007, "The pigeonhole bootstrap".

    Example:
        >>> interval = bootstrap_interval([1, 0, 1, 1] * 25)
        >>> interval.value, round(interval.low, 2), round(interval.high, 2)
        (0.75, 0.66, 0.83)
        >>> bootstrap_interval([1.0] * 20, bounds=(0, 1)).low.__round__(3)
        0.832
    """
    values = np.asarray(values, dtype=float)
    values = values[:, None] if values.ndim == 1 else values
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values of at least one problem, got {values.shape[0]} problems.")
    mean, alpha = float(values.mean()), 1 - level
    if bounds is not None and np.ptp(values) == 0:
        share = 1 - (alpha / 2) ** (1 / len(values))
        return Interval(mean, mean - share * (mean - bounds[0]), mean + share * (bounds[1] - mean))
    low, high = np.quantile(_means(values, over_seeds, resamples, seed), [alpha / 2, 1 - alpha / 2])
    return Interval(mean, float(low), float(high))


def _means(values: NDArray, over_seeds: bool, resamples: int, seed: int) -> NDArray[np.float64]:
    """The mean of each resample `(resamples,)`, of problems drawn with replacement and, where asked for, of seeds."""
    rng = np.random.default_rng(seed)
    problems, seeds = values.shape
    per_problem, means = values.mean(1), []
    block = max(1, BLOCK // values.size)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        rows = rng.integers(problems, size=(count, problems))
        if over_seeds:
            columns = rng.integers(seeds, size=(count, seeds))
            means.append(values[rows[:, :, None], columns[:, None, :]].mean((1, 2)))
        else:
            means.append(per_problem[rows].mean(1))
    return np.concatenate(means)


def paired_difference(first: ArrayLike, second: ArrayLike, **options: object) -> Interval:
    """Mean of second minus first on the same problems, and its interval: problems are drawn in pairs.

    The difficulty of a problem, which both share, cancels: narrower than the difference of two intervals.

    Args:
        first, second: `(problems,)` or `(problems, seeds)` each, in the same order of problems; seeds are averaged.
        options: of [`bootstrap_interval`].

    Raises:
        ValueError: different numbers of problems.

    Example:
        >>> difference = paired_difference([0, 0, 1, 1] * 25, [0, 1, 1, 1] * 25)
        >>> difference.value, difference.low > 0
        (0.25, True)
    """
    means = [np.asarray(values, dtype=float) for values in (first, second)]
    if len(means[0]) != len(means[1]):
        raise ValueError(
            f"a paired difference needs the same problems on both sides, got {len(means[0])} and {len(means[1])}."
        )
    means = [values.reshape(len(values), -1).mean(1) for values in means]
    return bootstrap_interval(means[1] - means[0], **options)
