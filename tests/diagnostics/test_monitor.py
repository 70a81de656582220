import math

import pytest

from opd_trl.diagnostics import Condition, Monitor, Remedy, Rule


def monitor(*conditions, window=2, **options):
    return Monitor([Rule("rule", conditions, "Cause.", (Remedy("Do this", "here"),), window=window, **options)])


def steps(watcher, **figures):
    """Lines at which the rule fires."""
    columns = list(zip(*figures.values(), strict=True))
    return [i for i, line in enumerate(columns) if watcher.update(i, dict(zip(figures, line, strict=True)))]


@pytest.mark.parametrize(
    ("kind", "threshold", "values", "fires_at"),
    [
        ("fell_by", 0.5, [3, 3, 2.5, 2.5, 2.4], [4]),  # 3 at first; 2.5 is not below 2.5
        ("fell_by", 0.5, [3, 3, 2.6, 2.6], []),
        ("fell_by", 0.5, [4, 2, 2.4, 2.4, 0, 0], []),  # the first lines are 1 apart from their mean
        ("fell_by", 0.5, [4, 2, 1, 1, -0.1, -0.1], [5]),
        ("rose_by", 0.5, [3, 3, 3.6, 3.6], [3]),
        ("rose_by", 0.5, [3, 3, 3.4, 3.4], []),
        ("shrank_to", 0.5, [3, 3, 1.4, 1.4], [3]),
        ("shrank_to", 0.5, [3, 3, 1.6, 1.6], []),
        ("shrank_to", 0.5, [-3, -3, -9, -9], []),  # no share of what is not above zero
        ("grew_to", 1.5, [3, 3, 4.6, 4.6], [3]),
        ("grew_to", 1.5, [3, 3, 4.4, 4.4], []),
        ("grew_to", 1.5, [0, 0, 4.4, 4.4], []),
        ("held_at", 0.5, [4, 4, 3, 3, 2.95, 2.95], [5]),
        ("held_at", 0.5, [4, 4, 3, 3, 2.5, 2.5], []),  # still falling
        ("held_at", 0.5, [4, 4, 1, 1, 1, 1], []),  # little is left
        ("above", 0.5, [0.6, 0.4, 0.6, 0.7], [3]),
        ("below", 0.5, [0.4, 0.6, 0.4, 0.3], [3]),
        ("zero", 0.0, [1, 0, 0, 0], [2]),
        ("zero", 0.5, [1, -0.4, 0.6, 0.4, -0.4], [4]),
        ("not_finite", 0.0, [1, math.inf, 1], [1]),
        ("not_finite", 0.0, [1, 1e30, -1e30], []),
    ],
)
def test_a_condition_holds_where_it_should(kind, threshold, values, fires_at):
    assert steps(monitor(Condition("x", kind, threshold)), x=values) == fires_at


def test_a_rule_speaks_once():
    assert steps(monitor(Condition("x", "above", 0.0), window=1), x=[1, 1, 1]) == [0]


def test_all_conditions_must_hold_at_the_same_line():
    both = monitor(Condition("x", "above", 0.0), Condition("y", "above", 0.0), window=1)
    assert steps(both, x=[1, -1, 1], y=[-1, 1, 1]) == [2]


def test_a_figure_can_be_compared_with_another():
    assert steps(monitor(Condition("x", "above", 0.0, minus="y"), window=1), x=[1, 2, 3], y=[1, 2, 2]) == [2]


@pytest.mark.parametrize("missing", [{}, {"x": None}, {"x": math.nan}])
def test_lines_without_the_figure_do_not_count(missing):
    watcher = monitor(Condition("x", "fell_by", 1.0))
    fired = []
    for i, line in enumerate([{"x": 5}, missing, {"x": 5}, missing, {"x": 1}, missing, {"x": 1}]):
        fired += [warning.step for warning in watcher.update(i, line)]
    assert fired == [6]


def test_a_warning_says_what_was_seen_why_and_what_to_do():
    watcher = monitor(Condition("family/x", "fell_by", 0.5))
    for i in range(3):
        assert watcher.update(i, {"family/x": 2.0}) == []
    watcher.update(3, {"family/x": 1.0})
    (warning,) = watcher.update(4, {"family/x": 1.0})
    assert warning.message == (
        "rule at step 4: family/x is 1 over the last 2 log lines, below 1.5; it was 2 in the run's first 2. Cause. "
        "Do this (here)."
    )
    assert (warning.figure, warning.value, warning.threshold, warning.window) == ("family/x", 1.0, 1.5, 2)


def test_settings_choose_rules_and_remedies():
    rule = Rule(
        "rule", (Condition("x", "above", 0.0),), "Biased.", (Remedy("A", unless={"a": 1}), Remedy("B")),
        unbiased="Not biased.", window=1, only={"privileged": True}, unless={"loss_support": "sampled"},
    )  # fmt: skip
    assert not Monitor([rule], {}).update(0, {"x": 1})
    assert not Monitor([rule], {"privileged": True, "loss_support": "sampled"}).update(0, {"x": 1})
    (warning,) = Monitor([rule], {"privileged": True, "a": 1, "biased": False}).update(0, {"x": 1})
    assert warning.message.endswith("Not biased. B (arXiv 2605.11182).")
    (warning,) = Monitor([rule], {"privileged": True, "a": 2}).update(0, {"x": 1})
    assert warning.message.endswith("Biased. A (arXiv 2605.11182). B (arXiv 2605.11182).")


def test_one_condition_is_enough_where_the_rule_says_so():
    conditions = (Condition("x", "above", 0.5), Condition("y", "above", 0.5))
    assert steps(monitor(*conditions), x=[0, 0, 0], y=[1, 1, 1]) == []
    watcher = monitor(*conditions, one_is_enough=True)
    fired = [w for i, line in enumerate([{"y": 1.0}] * 3) for w in watcher.update(i, line)]
    assert [(warning.step, warning.figure) for warning in fired] == [(1, "y")]
