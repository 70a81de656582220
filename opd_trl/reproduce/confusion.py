"""What did a run come to, and had its trial, the pre-flight and the monitor said so?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..evaluation.statistics import Interval, paired_difference
from ..preflight.trial.verdict import DIVERGENCE, Change, judged
from .rates import by_rate, parted
from .settings import Arm, Settings


Line = dict[str, Any]
HELPED, HURT, SAME = "helped", "hurt", "no difference"
CAME_TO = (HELPED, SAME, HURT)
WORDS = ("works", "unclear", "harms")
#: The outcome that the judge of a trial sees.
JUDGED = "accuracy"
#: Outcome of an arm -> where its results count the samples of each problem that reached it, a digit each.
COUNTS = {"accuracy": "right", "marked": "marks"}


@dataclass
class Results:
    """The lines of a study, found by what they are about.

    Attributes:
        arms, forecasts: name -> seed -> result, on the seeds that are reported.
        rates: name -> the learning rate of these results, where one was chosen.
        tried: (name, rate) -> seed -> result, on the seeds of the choice.
        references: (model, prompts, context) -> seed -> figures.
    """

    arms: dict[str, dict[int, Line]] = field(default_factory=dict)
    forecasts: dict[str, dict[int, Line]] = field(default_factory=dict)
    rates: dict[str, float | None] = field(default_factory=dict)
    tried: dict[tuple[str, float | None], dict[int, Line]] = field(default_factory=dict)
    references: dict[tuple[str, str, str | None], dict[int, Line]] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: Sequence[Line]) -> "Results":
        """Sort the lines of `results.jsonl` by what they are about."""
        found = cls(tried=by_rate(lines))
        for line in lines:
            name, rate = parted(line.get("name", ""))
            if line["kind"] == "arm":
                found.arms.setdefault(name, {})[line["seed"]] = line["result"]
                found.rates[name] = rate
            elif line["kind"] == "forecast":
                found.forecasts.setdefault(name, {})[line["seed"]] = line["result"]
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
        return self._reference(arm, (arm.student, arm.prompts, None), name)

    def teacher(self, arm: Arm, name: str) -> dict[int, float]:
        """A figure of the arm's teacher, by seed."""
        return self._reference(arm, (arm.teacher_model, arm.prompts, arm.context), name)

    def _reference(self, arm: Arm, subject: tuple[str, str, str | None], name: str) -> dict[int, float]:
        found = self.references.get(subject, {})
        return {seed: found[seed][name] for seed in self.runs(arm) if name in found.get(seed, {})}

    def came_to(self, arm: Arm) -> dict[int, str]:
        """What each run of the reported seeds came to, by seed."""
        found = ((seed, self.verdict(arm, seed, result)) for seed, result in self.runs(arm).items())
        return {seed: word for seed, word in found if word is not None}

    def verdict(self, arm: Arm, seed: int, result: Line, outcome: str | None = None) -> str | None:
        """Did a run help, hurt, or make no difference beyond the interval over problems? None: it has no score.

        `outcome`: which figure decides, by default that of the arm.
        """
        counts = COUNTS.get(outcome or arm.outcome, "")
        before, after = self.start(arm, seed).get(counts), result["after"].get(counts)
        return None if before is None or after is None else difference(before, after)

    def start(self, arm: Arm, seed: int) -> Line:
        """The figures of the arm's student before training with a seed, one of the choice too."""
        return self.references.get((arm.student, arm.prompts, None), {}).get(seed, {})


def difference(before: str, after: str) -> str:
    """What the score of the same problems has done, from how many samples of each were right.

    >>> difference("0" * 20, "2" * 20), difference("2" * 20, "2" * 20), difference("2" * 20, "0" * 20)
    ('helped', 'no difference', 'hurt')
    """
    change = paired_difference([int(x) for x in before], [int(x) for x in after])
    return HELPED if change.low > 0 else HURT if change.high < 0 else SAME


@dataclass(frozen=True)
class Run:
    """One run that a trial had looked at.

    Attributes:
        arm: its name.
        words: steps of a trial -> its word.
        blind: the same by the divergence alone, as where no judge scores answers.
        came_to: `helped`, `no difference` or `hurt`.
        change: of the outcome, after less before.
    """

    arm: str
    words: dict[str, str]
    blind: dict[str, str]
    came_to: str
    change: float


def looked_at(settings: Settings, results: Results) -> list[Run]:
    """Every run that a trial had looked at, those on which rates were chosen as well.

    What they came to is their right answers, which is what the trial's judge counts, whatever the arm is about.
    """
    runs = [(name, by_seed) for (name, _), by_seed in sorted(results.tried.items())] + list(results.arms.items())
    found = []
    for name, by_seed in runs:
        arm = settings.arms.get(name)
        for seed, result in sorted(by_seed.items()) if arm is not None else ():
            word = results.verdict(arm, seed, result, JUDGED)
            if word is not None and "foretold" in result:
                change = result["after"][JUDGED] - results.start(arm, seed)[JUDGED]
                told = result["foretold"]
                found.append(Run(name, told["words"], by_divergence(told), word, change))
    return found


def by_divergence(told: Line) -> dict[str, str]:
    """Steps of a trial -> its word, had there been no score.

    >>> fell, rose = [[0.5, change, change - 0.1, change + 0.1] for change in (-0.2, 0.2)]
    >>> by_divergence({"changes": {"20": {"divergence": rose}}, "second_half": {"20": {"divergence": fell}}})
    {'20': 'unclear'}
    """

    def read(row: Sequence[float]) -> dict[str, Change]:
        before, change, low, high = row
        return {
            DIVERGENCE: Change(
                Interval(before, before, before),
                Interval(before + change, *[before + change] * 2),
                Interval(change, low, high),
            )
        }

    return {
        steps: judged(read(whole[DIVERGENCE]), read(told["second_half"][steps][DIVERGENCE]))
        for steps, whole in told["changes"].items()
    }


@dataclass(frozen=True)
class Score:
    """How often the word of a trial was right.

    Attributes:
        counts: (word, what the run came to) -> how many runs.
    """

    counts: Counter[tuple[str, str]]

    @classmethod
    def of(cls, runs: Sequence[Run], steps: str, *, blind: bool = False) -> "Score":
        """That of the trial of so many steps; `blind`: had there been no score."""
        return cls(Counter(((run.blind if blind else run.words)[steps], run.came_to) for run in runs))

    def said(self, word: str) -> int:
        """How many runs got a word."""
        return sum(self.counts[word, outcome] for outcome in CAME_TO)

    @property
    def right(self) -> int:
        """Runs that helped where it said works, or did not where it said harms."""
        return self.counts["works", HELPED] + self.said("harms") - self.counts["harms", HELPED]

    @property
    def decided(self) -> int:
        """Runs of which it said works or harms."""
        return self.said("works") + self.said("harms")


def stopped(settings: Settings, results: Results) -> tuple[int, int]:
    """Runs that the static part of the pre-flight said to stop, and those of them that helped all the same."""
    found = [
        word
        for arm in settings.arms.values()
        for seed, word in results.came_to(arm).items()
        if results.forecasts.get(arm.name, {}).get(seed, {}).get("verdict") == "stop"
    ]
    return len(found), found.count(HELPED)


def by_rule(settings: Settings, results: Results) -> tuple[int, int, dict[str, list[tuple[int, bool]]]]:
    """Runs that the monitor watched, those that helped, and rule -> (step, did the run help?) of each warning."""
    watched, helped, fired = 0, 0, {}
    for arm in settings.arms.values():
        for seed, word in results.came_to(arm).items():
            warnings = results.runs(arm)[seed].get("warnings")
            if warnings is not None:
                watched, helped = watched + 1, helped + (word == HELPED)
                for rule, step in warnings.items():
                    fired.setdefault(rule, []).append((step, word == HELPED))
    return watched, helped, dict(sorted(fired.items(), key=lambda x: (-sum(not good for _, good in x[1]), x[0])))
