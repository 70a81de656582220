"""Did an arm work, and had the pre-flight said so?"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .settings import Arm, Settings


Line = dict[str, Any]
# Share of the way from student to teacher that an arm must go to count as one that worked.
WORKED = 0.5
# Teachers that are hardly better than their student leave nothing to judge by.
LEAST_GAP = 0.05
#: Verdicts that say that a run will not work well, or not at all.
DOUBTS = ("fix", "stop")


@dataclass
class Results:
    """The lines of a study, found by what they are about.

    Attributes:
        arms, forecasts: name -> seed -> result.
        references: (model, prompts, context) -> seed -> figures.
    """

    arms: dict[str, dict[int, Line]] = field(default_factory=dict)
    forecasts: dict[str, dict[int, Line]] = field(default_factory=dict)
    references: dict[tuple[str, str, str | None], dict[int, Line]] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: Sequence[Line]) -> "Results":
        """Sort the lines of `results.jsonl` by what they are about."""
        found = cls()
        for line in lines:
            if line["kind"] in ("arm", "forecast"):
                kind = found.arms if line["kind"] == "arm" else found.forecasts
                kind.setdefault(line["name"], {})[line["seed"]] = line["result"]
            elif line["kind"] == "reference":
                subject = line["model"], line["prompts"], line["context"]
                found.references.setdefault(subject, {})[line["seed"]] = line["result"]
        return found

    def after(self, arm: Arm, name: str) -> dict[int, float]:
        """A figure of the trained student by seed."""
        return {seed: result["after"][name] for seed, result in self.runs(arm).items() if name in result["after"]}

    def last(self, arm: Arm, name: str) -> dict[int, float]:
        """A logged figure at the end of training by seed."""
        return {seed: result["last"][name] for seed, result in self.runs(arm).items() if name in result["last"]}

    def foreseen(self, arm: Arm, name: str) -> dict[int, float]:
        """The value of a finding of the pre-flight by seed."""
        looks = self.forecasts.get(arm.name, {})
        values = {seed: [x["value"] for x in look["findings"] if x["name"] == name] for seed, look in looks.items()}
        return {seed: found[0] for seed, found in values.items() if found and found[0] is not None}

    def runs(self, arm: Arm) -> dict[int, Line]:
        """Seed -> the result of that run of an arm, seeds in order."""
        return dict(sorted(self.arms.get(arm.name, {}).items()))

    def before(self, arm: Arm, name: str) -> dict[int, float]:
        """A figure of the arm's student before training, by seed."""
        return self._reference((arm.student, arm.prompts, None), name)

    def teacher(self, arm: Arm, name: str) -> dict[int, float]:
        """A figure of the arm's teacher, by seed."""
        return self._reference((arm.teacher_model, arm.prompts, arm.context), name)

    def _reference(self, subject: tuple[str, str, str | None], name: str) -> dict[int, float]:
        return {seed: found[name] for seed, found in self.references.get(subject, {}).items()}

    def gap_closed(self, arm: Arm) -> dict[int, float]:
        """(after - before) / (teacher - before) by seed; seeds whose teacher is hardly better are left out."""
        if arm.outcome == "pick":
            return {}
        before, teacher = self.before(arm, arm.outcome), self.teacher(arm, arm.outcome)
        return {
            seed: (after - before[seed]) / (teacher[seed] - before[seed])
            for seed, after in self.after(arm, arm.outcome).items()
            if seed in before and seed in teacher and teacher[seed] - before[seed] >= LEAST_GAP
        }


@dataclass(frozen=True)
class Forecast:
    """What the pre-flight said of a run, and whether the run then worked.

    The `verdict` is `ok`, `fix` or `stop`; `doubts` names the findings that said fix or stop.
    """

    arm: str
    seed: int
    verdict: str
    doubts: tuple[str, ...]
    worked: bool

    @property
    def is_right(self) -> bool:
        """Was the pre-flight right: did it doubt a run that failed, or not doubt one that worked?"""
        return (self.verdict in DOUBTS) != self.worked


def forecasts(settings: Settings, results: Results) -> list[Forecast]:
    """What was said of every run that the pre-flight looked at and that can be judged."""
    return [
        Forecast(arm.name, seed, look["verdict"], doubts_of(look), closed >= WORKED)
        for arm in settings.arms.values()
        for seed, closed in results.gap_closed(arm).items()
        if (look := results.forecasts.get(arm.name, {}).get(seed)) is not None
    ]


def doubts_of(look: Line) -> tuple[str, ...]:
    """Names of the findings that said fix or stop, whatever K is.

    >>> doubts_of({"findings": [{"name": "Top-5 overlap", "verdict": "fix"}, {"name": "EOS", "verdict": "ok"}]})
    ('Top-K overlap',)
    """
    return tuple(re.sub(r"Top-\d+", "Top-K", x["name"]) for x in look["findings"] if x["verdict"] in DOUBTS)


def counts(found: Sequence[Forecast]) -> dict[tuple[str, bool], int]:
    """(verdict, did it work?) -> how many runs.

    >>> counts([Forecast("a", 0, "fix", ("overlap",), False), Forecast("b", 0, "ok", (), True)])["ok", True]
    1
    """
    total = Counter((x.verdict, x.worked) for x in found)
    return {(verdict, worked): total[verdict, worked] for verdict in ("ok", *DOUBTS) for worked in (False, True)}


def by_rule(settings: Settings, results: Results) -> tuple[int, dict[str, list[tuple[int, bool]]]]:
    """How many runs the monitor watched and that can be judged; rule -> (step, did the run work?) of each warning."""
    watched, fired = 0, {}
    for arm in settings.arms.values():
        for seed, closed in results.gap_closed(arm).items():
            warnings = results.runs(arm)[seed].get("warnings")
            if warnings is not None:
                watched += 1
                for rule, step in warnings.items():
                    fired.setdefault(rule, []).append((step, closed >= WORKED))
    return watched, dict(sorted(fired.items(), key=lambda x: (-sum(not worked for _, worked in x[1]), x[0])))


def by_finding(found: Sequence[Forecast]) -> dict[str, tuple[int, int]]:
    """Name of a finding -> (runs that it doubted, those of them that failed), the most frequent first."""
    doubted = Counter(name for x in found for name in dict.fromkeys(x.doubts))
    failed = Counter(name for x in found if not x.worked for name in dict.fromkeys(x.doubts))
    return {name: (count, failed[name]) for name, count in doubted.most_common()}
