"""Each arm at its own best learning rate, chosen on seeds that are not reported."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from .settings import Arm, Settings


Line = dict[str, Any]


def named(arm: str, rate: float | None) -> str:
    """Under which name the results of an arm at a rate are kept; without one, that of `training` is meant.

    >>> named("full", 1e-3), named("full", None)
    ('full@0.001', 'full')
    """
    return arm if rate is None else f"{arm}@{rate:g}"


def parted(name: str) -> tuple[str, float | None]:
    """An arm and its rate, from the name of its results.

    >>> parted("full@0.001"), parted("full")
    (('full', 0.001), ('full', None))
    """
    arm, _, rate = name.partition("@")
    return arm, float(rate) if rate else None


def arm_of(settings: Settings, name: str) -> Arm:
    """The arm of a name, with its rate among its fields."""
    own_name, rate = parted(name)
    arm = settings.arms[own_name]
    if rate is None:
        return arm
    return dataclasses.replace(arm, name=name, fields=(arm.fields or {}) | {"learning_rate": rate})


def to_try(settings: Settings, arm: Arm) -> list[str]:
    """Names of an arm at each rate; none where a rate is not chosen: picks have theory to meet, not a score."""
    if settings.rates is None or arm.outcome == "pick":
        return []
    return [named(arm.name, rate) for rate in settings.rates["values"]]


def by_rate(lines: Sequence[Line]) -> dict[tuple[str, float | None], dict[int, Line]]:
    """(name, rate) -> seed -> result, of the runs on the seeds of the choice."""
    found: dict[tuple[str, float | None], dict[int, Line]] = {}
    for line in lines:
        if line["kind"] == "rate":
            found.setdefault(parted(line["name"]), {})[line["seed"]] = line["result"]
    return found


def tried(settings: Settings, lines: Sequence[Line]) -> dict[str, dict[float, float]]:
    """Arm -> rate -> mean outcome over the seeds of the choice, for rates that have run on all of them."""
    means: dict[str, dict[float, float]] = {}
    for (name, rate), results in sorted(by_rate(lines).items()):
        if name in settings.arms and set(results) >= set(seeds := settings.rates["seeds"]):
            outcomes = [results[seed]["after"][settings.arms[name].outcome] for seed in seeds]
            means.setdefault(name, {})[rate] = statistics.fmean(outcomes)
    return means


def chosen(settings: Settings, lines: Sequence[Line]) -> dict[str, float]:
    """Arm -> its best rate, for arms that were tried at all of them; of equals the lowest.

    Where only the seeds of the choice are in the lines, nothing of what is reported decides.
    """
    found = {}
    for name, means in tried(settings, lines).items():
        if len(means) == len(settings.rates["values"]):
            found[name] = max(means, key=lambda rate: (means[rate], -rate))
    return found
