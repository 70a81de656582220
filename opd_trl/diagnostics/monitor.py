"""Watch the log lines of a run and say once what goes wrong."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .conditions import Condition, Reading
from .warning_rules import RULES, Rule


@dataclass(frozen=True)
class MonitorWarning:
    """The warning of a rule that has fired at a step of a run.

    Attributes:
        step: optimizer step of the log line.
        rule, figure: their names.
        value, threshold: of the rule's first condition that holds.
        window: log lines that were taken together.
        message: the full sentence.
    """

    step: int
    rule: str
    figure: str
    value: float
    threshold: float
    window: int
    message: str


class Monitor:
    """Rules over the log lines of one run. Pure: it sees numbers alone, and every rule speaks once.

    Args:
        rules: default `RULES`.
        settings: fields of the configuration; `biased`: has its loss the bias of mechanism 2; `privileged`: does the
            teacher read a privileged context? They decide which rules mean anything and which remedies are in force.

    Example:
        >>> monitor = Monitor(settings={"stop_gradient": False, "loss_tail": "renormalize"})
        >>> overlap = [0.6] * 5 + [0.5, 0.4, 0.3, 0.2, 0.1]
        >>> warnings = [w for i, x in enumerate(overlap) for w in monitor.update(i, {"support/overlap": x})]
        >>> warnings[0].rule, warnings[0].step
        ('overlap_falls', 9)
        >>> "Set stop_gradient: true" in warnings[0].message
        True
    """

    def __init__(self, rules: Iterable[Rule] = RULES, settings: Mapping[str, Any] | None = None):
        self.settings = dict(settings or {})
        self.open = [rule for rule in rules if rule.applies(self.settings)]
        self._series: dict[Condition, list[float]] = defaultdict(list)

    def update(self, step: int, line: Mapping[str, float | None]) -> list[MonitorWarning]:
        """Take in a log line; return a warning for each rule that fires at it, which it does once in a run.

        Args:
            step: its optimizer step.
            line: figure -> value; what a rule does not find there it does not judge.
        """
        fired = []
        for condition in {condition for rule in self.open for condition in rule.conditions}:
            value = condition.figure_in(line)
            if value is not None and (math.isfinite(value) or condition.kind == "not_finite"):
                self._series[condition].append(value)
        for rule in self.open:
            judged = [condition for condition in rule.conditions if condition.figure_in(line) is not None]
            readings = {condition: condition.read(self._series[condition], rule.window) for condition in judged}
            held = [condition for condition, reading in readings.items() if reading is not None and reading.holds]
            if held and (rule.one_is_enough or len(held) == len(rule.conditions)):
                fired.append((rule, held[0], readings[held[0]]))
        self.open = [rule for rule in self.open if rule not in [x for x, *_ in fired]]
        return [self._warning(step, *found) for found in fired]

    def _warning(self, step: int, rule: Rule, condition: Condition, reading: Reading) -> MonitorWarning:
        found = (condition.name, reading.value, reading.threshold, rule.window)
        why, advice = rule.cause(self.settings), rule.advice(self.settings)
        message = f"{rule.name} at step {step}: {in_words(rule, condition, reading)}. {why} {advice}"
        return MonitorWarning(step, rule.name, *found, message.strip())


def in_words(rule: Rule, condition: Condition, reading: Reading) -> str:
    """What a condition of a rule has read, as a clause of a warning: figure, value, threshold."""
    value, limit = f"{reading.value:.3g}", f"{reading.threshold:.3g}"
    if condition.kind == "not_finite":
        return f"{condition.name} is {value}"
    if condition.kind == "zero":
        return f"{condition.name} is {value} over the last {rule.window} log lines"
    side = "below" if reading.value < reading.threshold else "above"
    past = "" if reading.first is None else f"; it was {reading.first:.3g} in the run's first {rule.window}"
    return f"{condition.name} is {value} over the last {rule.window} log lines, {side} {limit}{past}"
