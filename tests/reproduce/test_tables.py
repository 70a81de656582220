"""Tables, checks and the confusion of made-up lines, with figures that can be worked out by hand."""

import dataclasses

import pytest

from opd_trl.reproduce.comparisons import checked, figure
from opd_trl.reproduce.confusion import Results, by_finding, counts, forecasts
from opd_trl.reproduce.tables import report

from .lines import lines, run, settings


@pytest.fixture
def results():
    return Results.of(lines())


def table_under(text: str, heading: str) -> list[dict[str, str]]:
    """Rows of the first table after a heading, by the names of their columns."""
    rows = next(row for row in text.split(heading)[1].split("\n\n") if row.startswith("|")).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_the_gap_closed_is_the_way_from_student_to_teacher(results):
    arms = settings().arms
    closed = results.gap_closed(arms["good"])
    assert closed == pytest.approx({0: 0.75, 1: 0.75, 2: 0.375})
    assert results.gap_closed(arms["bad"]) == pytest.approx({0: -1.0, 1: -0.75, 2: -0.5})


def test_a_teacher_that_is_hardly_better_leaves_no_gap():
    weak = [line for line in lines() if line.get("model") != "own"]
    weak += [{**line, "model": "own"} for line in weak if line.get("model") == "weak"]
    assert Results.of(weak).gap_closed(settings().arms["good"]) == {}


def test_a_check_holds_where_the_interval_of_the_paired_difference_is_above_zero():
    found = checked(settings(), lines())
    # 0.7, 0.6, 0.35: mean 0.55, standard deviation 0.1803, t(2) = 4.303.
    good_bad = found[0].difference
    assert good_bad.value == pytest.approx(0.55)
    assert good_bad.low == pytest.approx(0.55 - 4.303 * 0.1803 / 3**0.5, abs=1e-3)
    assert [check.verdict for check in found] == ["held", "the other way", "held", "not shown"]


def test_one_seed_has_no_verdict_and_no_result_neither():
    one = [line for line in lines() if line["seed"] == 0]
    assert {check.verdict for check in checked(settings(), one)} == {"one seed"}
    assert {check.verdict for check in checked(settings(), [])} == {"not run"}


def test_a_side_of_a_check_is_an_outcome_a_reference_a_log_name_or_a_finding(results):
    own = settings()
    assert figure(own, results, "good") == {0: 0.8, 1: 0.8, 2: 0.65}
    assert figure(own, results, "good:teacher") == {0: 0.9, 1: 0.9, 2: 0.9}
    assert figure(own, results, "good:length") == {0: 20.0, 1: 20.0, 2: 20.0}
    assert figure(own, results, "bad:entropy") == {0: 2.0, 1: 1.0, 2: 0.0}
    assert figure(own, results, "bad:Top-5 overlap") == {0: 0.25, 1: 1.25, 2: 2.25}
    assert figure(own, results, "bad:EOS") == figure(own, results, "nobody") == {}


def test_a_forecast_is_right_where_it_doubts_what_fails(results):
    found = forecasts(settings(), results)
    assert [(x.arm, x.seed, x.verdict, x.worked, x.is_right) for x in found] == [
        ("good", 0, "ok", True, True),
        ("good", 1, "fix", True, False),
        ("bad", 0, "fix", False, True),
        ("bad", 1, "stop", False, True),
        ("bad", 2, "stop", False, True),
    ]
    total = counts(found)
    assert (total["fix", True], total["fix", False], total["stop", False], total["ok", True]) == (1, 1, 2, 1)
    assert by_finding(found) == {"Top-K overlap": (4, 3), "gradient": (1, 0)}


def test_the_report_holds_the_figures_of_each_arm():
    text = report(settings(), lines())
    good, bad = table_under(text, "### A claim")
    assert (good["right, T = 1"], good["before"], good["teacher"]) == ("0.75 [0.53, 0.97]", "0.50", "0.90")
    assert good["against: Bad"] == "+0.55 [+0.10, +1.00]"
    assert (good["worked"], bad["worked"], bad["against: Bad"]) == ("2 of 3", "0 of 3", "")
    assert bad["pre-flight"] == "doubts 3 of 3: Top-K overlap"
    assert good["pre-flight"] == "doubts 1 of 2: Top-K overlap; gradient"
    assert "the pre-flight was right in 4 of 5 (80%)" in text
    assert "2 of 4 comparisons held" in text
    said = table_under(text, "### What the pre-flight had said")
    assert said == [
        {"it said": "ok", "failed": "0", "worked": "1"},
        {"it said": "fix", "failed": "1", "worked": "1"},
        {"it said": "stop", "failed": "2", "worked": "0"},
    ]


def test_the_warnings_of_the_monitor_are_counted_by_rule_with_their_step():
    (row,) = table_under(report(settings(), lines()), "### What the monitor said meanwhile")
    assert row == {"rule": "spike", "runs warned": "3", "of them failed": "3 (100%)", "step, median": "4"}
    assert "6 runs, watched step by step." in report(settings(), lines())


def test_a_pick_has_a_table_of_its_own():
    assert "| Pick | 3 | 0.20 0.30 0.40 | 0.2600 ± 0.0000 | 0.7000 | 0.2575 |" in report(settings(), lines())


def test_arms_and_claims_without_a_result_are_left_out():
    assert "A claim" not in report(settings(), [])
    text = report(settings(), [run("good", 0, 0.8, entropy=1.0)])
    assert "Bad" not in text.split("### A claim")[1]
    assert "0.80" in text


def test_a_bar_in_a_label_does_not_break_a_row():
    own = settings()
    arms = own.arms | {"good": dataclasses.replace(own.arms["good"], label="a|b")}
    assert "| a\\|b | 3 |" in report(dataclasses.replace(own, arms=arms), lines())
