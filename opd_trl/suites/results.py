"""Figures with a value for every problem, so that they have intervals and two models compare in pairs."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..evaluation import bootstrap_interval, paired_difference
from ..evaluation.boxes import NO_BOX
from ..models.sampling import Completion
from .problems import Problem, ProblemSet
from .protocol import Protocol, differences
from .store import Sample, read_json, read_samples


SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Metric:
    """One figure of an evaluation, with its value for every problem.

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
        """Value and interval over problems; with several seeds also over both, and the value of each seed."""
        table = self.table()
        interval = bootstrap_interval(table, bounds=self.bounds)
        found = {"value": interval.value, "low": interval.low, "high": interval.high, "problems": len(table)}
        if table.shape[1] > 1:
            both = bootstrap_interval(table, over_seeds=True, bounds=self.bounds)
            found |= {"low_over_seeds": both.low, "high_over_seeds": both.high, "by_seed": table.mean(0).tolist()}
        return found | {"what": self.what, "unit": self.unit}

    def table(self, order: Iterable[str] | None = None) -> np.ndarray:
        """The values as an array `(problems, seeds)`, problems in `order` or sorted by name."""
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
    """Problem -> the mean value of its samples with each seed, seeds in order."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        found[sample["problem"]][sample["seed"]].append(float(value(sample)))
    return {
        problem: [sum(values) / len(values) for _, values in sorted(seeds.items())]
        for problem, seeds in sorted(found.items())
    }


def grouped(samples: Iterable[Sample]) -> dict[str, dict[int, list[Sample]]]:
    """Problem -> seed -> its samples, in the order of their numbers."""
    found: dict[str, dict[int, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in sorted(samples, key=lambda sample: (sample["problem"], sample["seed"], sample["sample"])):
        found[sample["problem"]][sample["seed"]].append(sample)
    return found


def generation_figures(samples: list[Sample]) -> dict[str, float]:
    """How long the generated samples are, in tokens, and which share of them is cut off."""
    lengths = np.array([sample["tokens"] for sample in samples])
    return {
        "samples": len(samples),
        "truncated": float(np.mean([not sample["finished"] for sample in samples])),
        "mean_tokens": float(lengths.mean()),
        "median_tokens": float(np.median(lengths)),
        "max_tokens": int(lengths.max()),
    }


class Suite:
    """What an evaluation asks, and how the answers are judged.

    Attributes:
        parts: name -> the problems that are asked.
        texts: name -> a plain text whose likelihood is measured too.
    """

    parts: dict[str, ProblemSet]
    texts: Mapping[str, str] = MappingProxyType({})

    def judge(self, part: str, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[dict[str, Any]]:
        """What is noted of each answer to the problems of a part; it becomes a part of the sample."""
        raise NotImplementedError

    def metrics(self, samples: list[Sample]) -> list[Metric]:
        """The figures with a value for every problem, the most important first."""
        raise NotImplementedError

    def counts(self, samples: list[Sample]) -> dict[str, int]:
        """Reason -> how many answers it made wrong, the most frequent first."""
        return {}

    def figures(self, samples: list[Sample]) -> dict[str, float]:
        """Figures without an interval, beside the metrics."""
        return {}

    def close(self) -> None:
        """End the processes that judge, where the suite has some."""


# What two runs must have in common; models, adapters, contexts and engines are what is compared.
SHARED = ("suite", "protocol", "data", "rules", "leak_rules")


def compare(folder: Path, identity: dict[str, Any], metrics: list[Metric], suite: Suite) -> dict[str, Any]:
    """The difference of each metric from the evaluation in `folder`, whose model and adapter it names.

    Raises ValueError, saying what differs, where there is none to compare: unfinished, or of another protocol or data.
    """
    check_comparable(folder, identity)
    theirs = {metric.name: metric for metric in suite.metrics(read_samples(folder / "samples.jsonl"))}
    found = {}
    for metric in metrics:
        if metric.values.keys() != theirs[metric.name].values.keys():
            raise ValueError(f"--compare {folder}: samples of other problems. Run it to its end first.")
        found[metric.name] = metric.difference(theirs[metric.name])
    there = read_json(folder / "run.json")
    return {"folder": str(folder), "who": {name: there.get(name) for name in ("model", "adapter", "context")}, **found}


def check_comparable(folder: Path, identity: dict[str, Any]) -> None:
    """Raise ValueError unless a folder holds a finished evaluation that can be compared; before anything is run."""
    if not (folder / "result.json").is_file():
        raise ValueError(f"--compare {folder} has no result.json. Give the --output of an evaluation that has ended.")
    there = read_json(folder / "run.json")
    changed = differences({k: there.get(k) for k in SHARED}, {k: identity.get(k) for k in SHARED})
    if changed:
        raise ValueError(f"--compare {folder} cannot be compared: {'; '.join(changed)}. Evaluate both alike.")


# Above this share of cut answers a comparison of models says how long they write, not how good they are.
MAX_TRUNCATED = 0.05
MAX_HALF_WIDTH = 0.05
# Above this share of finished answers without a box, accuracy says how well a model keeps to the format.
MAX_UNBOXED = 0.2


def summarise(suite: Suite, protocol: Protocol, samples: list[Sample]) -> dict[str, Any]:
    """What result.json says of the samples: figures, counts and warnings."""
    metrics: list[Metric] = suite.metrics(samples)
    generated = [sample for sample in samples if "finished" in sample]
    figures = {metric.name: metric.figure() for metric in metrics}
    lengths = generation_figures(generated)
    return {
        "figures": figures,
        "also": suite.figures(samples),
        "generation": lengths,
        "counts": suite.counts(generated),
        "dropped": {part: problems.dropped for part, problems in suite.parts.items() if problems.dropped},
        "warnings": [*warnings(figures, lengths, protocol), *unboxed(generated)],
    }


def unboxed(samples: list[Sample]) -> list[str]:
    """A warning where many answers that are not cut have no box."""
    finished = [sample for sample in samples if sample["finished"]]
    share = sum(sample.get("reason") == NO_BOX for sample in finished) / max(1, len(finished))
    if share <= MAX_UNBOXED:
        return []
    return [
        f"{share:.0%} of the finished answers have no box and count as wrong: the figures say more about the format "
        "than about mathematics. Ask for the box in prompt_template, and read some samples."
    ]


def warnings(figures: dict[str, Any], generation: dict[str, Any], protocol: Protocol) -> list[str]:
    """What a reader of the figures must know."""
    found = []
    if generation["truncated"] > MAX_TRUNCATED:
        found.append(
            f"{generation['truncated']:.1%} of the answers are cut at {protocol.max_new_tokens} tokens. Above "
            f"{MAX_TRUNCATED:.0%} a comparison is biased against the model that writes longer: raise max_new_tokens."
        )
    name, first = next(iter(figures.items()))
    half = (first["high"] - first["low"]) / 2
    if first["unit"] == "%" and half > MAX_HALF_WIDTH:
        needed = round(first["problems"] * (half / MAX_HALF_WIDTH) ** 2)
        found.append(
            f"{first['problems']} problems leave {name} uncertain by ±{100 * half:.1f} points. About {needed} "
            f"problems would give ±{100 * MAX_HALF_WIDTH:.0f}; more samples of the same ones help less."
        )
    return found
