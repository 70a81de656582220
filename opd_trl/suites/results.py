"""Figures with a value for every problem, so that they have intervals and two models compare in pairs."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation import bootstrap_interval, paired_difference
from .store import Sample


SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Metric:
    """One figure.

    Args:
        name: e.g. `avg@12`.
        values: of each problem, one value per seed, or one value over all.
        bounds: the range of a value; None where there is none.
        what: in words.
        unit: "%" for a share.
    """

    name: str
    values: dict[str, list[float]]
    what: str
    bounds: tuple[float, float] | None = SHARE
    unit: str = "%"

    def figure(self) -> dict[str, Any]:
        """Value and interval, over problems; over problems and seeds too, and the value of each seed, where there are
        several."""
        table = self.table()
        interval = bootstrap_interval(table, bounds=self.bounds)
        found = {"value": interval.value, "low": interval.low, "high": interval.high, "problems": len(table)}
        if table.shape[1] > 1:
            both = bootstrap_interval(table, over_seeds=True, bounds=self.bounds)
            found |= {"low_over_seeds": both.low, "high_over_seeds": both.high, "by_seed": table.mean(0).tolist()}
        return found | {"what": self.what, "unit": self.unit}

    def table(self, order: Iterable[str] | None = None) -> np.ndarray:
        """`(problems, seeds)`."""
        return np.array([self.values[problem] for problem in order or sorted(self.values)], dtype=float)

    def difference(self, base: "Metric") -> dict[str, Any]:
        """This one less `base` on the same problems, with its interval, and how many problems rose and fell."""
        order = sorted(self.values)
        here, there = self.table(order).mean(1), base.table(order).mean(1)
        bounds = None if self.bounds is None else (self.bounds[0] - self.bounds[1], self.bounds[1] - self.bounds[0])
        interval = paired_difference(there, here, bounds=bounds)
        return {
            "base": float(there.mean()),
            "difference": interval.value,
            "low": interval.low,
            "high": interval.high,
            "problems": len(order),
            "rose": int((here > there).sum()),
            "fell": int((here < there).sum()),
            "unit": self.unit,
        }


def by_problem(samples: Iterable[Sample], value: Callable[[Sample], float]) -> dict[str, list[float]]:
    """Of each problem its mean value for each seed, seeds in order."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        found[sample["problem"]][sample["seed"]].append(float(value(sample)))
    return {
        problem: [sum(values) / len(values) for _, values in sorted(seeds.items())]
        for problem, seeds in sorted(found.items())
    }


def grouped(samples: Iterable[Sample]) -> dict[str, dict[int, list[Sample]]]:
    """Samples of each problem and seed."""
    found: dict[str, dict[int, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in sorted(samples, key=lambda sample: (sample["problem"], sample["seed"], sample["sample"])):
        found[sample["problem"]][sample["seed"]].append(sample)
    return found


def generation_figures(samples: list[Sample]) -> dict[str, float]:
    """Truncation and length of generated samples."""
    lengths = np.array([sample["tokens"] for sample in samples])
    return {
        "samples": len(samples),
        "truncated": float(np.mean([not sample["finished"] for sample in samples])),
        "mean_tokens": float(lengths.mean()),
        "median_tokens": float(np.median(lengths)),
        "max_tokens": int(lengths.max()),
    }
