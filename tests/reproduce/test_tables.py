"""Tables, checks and the confusion of made-up lines, with figures that can be worked out by hand."""

import dataclasses

import pytest

from opd_trl.reproduce.comparisons import checked, figure
from opd_trl.reproduce.confusion import Results, Score, looked_at, stopped
from opd_trl.reproduce.rates import chosen
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


def test_a_run_helped_or_hurt_where_its_score_moved_beyond_the_interval_over_problems(results):
    arms = settings().arms
    assert results.came_to(arms["good"]) == {0: "helped", 1: "helped", 2: "helped"}
    assert results.came_to(arms["bad"]) == {0: "hurt", 1: "hurt", 2: "hurt"}
    assert results.came_to(arms["pick"]) == {}
    same = [run("good", 0, 0.525), *(line for line in lines() if line["kind"] == "reference")]
    assert Results.of(same).came_to(arms["good"]) == {0: "no difference"}


def test_a_rate_is_chosen_on_the_seeds_of_the_choice_once_all_rates_have_run_there():
    assert chosen(settings(), lines()) == {"good": 1e-3, "bad": 4e-3}
    assert chosen(settings(), lines()[:-3]) == {"good": 1e-3}
    assert chosen(settings(), [line for line in lines() if line["kind"] != "rate"]) == {}
    text = report(settings(), lines())
    good, bad = table_under(text, "### Learning rates")
    assert (good["1e-03"], good["4e-03"]) == ("**0.90**", "0.10")
    assert (bad["1e-03"], bad["4e-03"]) == ("0.10", "**0.20**")


def test_a_check_holds_where_the_interval_of_the_paired_difference_is_above_zero():
    found = checked(settings(), lines())
    # 0.7, 0.6, 0.35: mean 0.55, standard deviation 0.1803, t(2) = 4.303.
    good_bad = found[0].difference
    assert good_bad.value == pytest.approx(0.55)
    assert good_bad.low == pytest.approx(0.55 - 4.303 * 0.1803 / 3**0.5, abs=1e-3)
    assert [check.verdict for check in found] == ["held", "the other way", "held", "not shown"]


def test_a_claim_says_how_many_of_its_comparisons_held():
    found = checked(settings(), lines())
    text = report(settings(), lines())
    for name, claim in settings().claims.items():
        verdicts = [check.verdict for check in found if check.claim == name]
        said = f"**Claim:** {claim.text} **Seen:** {verdicts.count('held')} of {len(verdicts)} comparisons held."
        assert said in text
    assert "**Seen:**" not in report(settings(), [line for line in lines() if line.get("name") == "pick"])


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


def test_the_word_of_a_trial_is_right_where_works_helped_or_harms_did_not(results):
    runs = looked_at(settings(), results)
    assert len(runs) == 6 + 4
    score = Score.of(runs, "20")
    assert score.counts == {("works", "helped"): 4, ("works", "hurt"): 1, ("harms", "hurt"): 5}
    assert (score.decided, score.right) == (10, 9)
    assert Score.of(runs, "10").decided == 0
    assert Score.of(runs, "10", blind=True).counts == {("harms", "helped"): 4, ("harms", "hurt"): 6}
    assert Score.of(runs, "20", blind=True).decided == 0
    assert stopped(settings(), results) == (2, 0)


def test_the_report_holds_the_figures_of_each_arm():
    text = report(settings(), lines())
    good, bad = table_under(text, "### A claim")
    assert (good["right, T = 1"], good["before"], good["teacher"]) == ("0.75 [0.53, 0.97]", "0.50", "0.90")
    assert good["against: Bad"] == "+0.55 [+0.10, +1.00]"
    assert (good["helped"], bad["helped"], bad["against: Bad"]) == ("3 of 3", "0 of 3", "")
    assert (good["rate"], bad["rate"]) == ("1e-03", "4e-03")
    assert (
        "It said *works* or *harms* of 10 of 10 (100%) and was right in 9 (90%). By the divergence alone: it said"
        in text
    )
    assert "It said *works* or *harms* of 0 of 10 (0%). By the divergence alone: it said" in text
    assert "The static part said *stop* of 2 runs; 0 of them helped." in text
    assert "2 of 4 comparisons held" in text
    assert "| works | 4 | 0 | 1 |" in text
    assert "| harms | 0 | 0 | 5 |" in text


def test_the_warnings_of_the_monitor_are_counted_by_rule_with_their_step():
    (row,) = table_under(report(settings(), lines()), "### What the monitor said meanwhile")
    assert row == {"rule": "spike", "runs warned": "3", "of them did not help": "3 (100%)", "step, median": "4"}
    assert "6 runs, watched step by step; 3 of them (50%) did not help." in report(settings(), lines())


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
    assert "| a\\|b | 1e-03 | 3 |" in report(dataclasses.replace(own, arms=arms), lines())
