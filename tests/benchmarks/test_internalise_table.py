import internalise_table as table
import numpy as np
import pytest
from internalise import FIELDS, RESULTS, RETENTION, all_cells, main
from lines import marks_of, read_lines

from opd_trl.data.files import write_jsonl

from .lines import CONDITIONS, evaluated, line, trained, written


BEGIN, END = marks_of("internalise")


def rows(text):
    """Cells of the rows of a Markdown table, head and rule left out."""
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:]]


def every_cell():
    lines = [line(*cell, retention=3.25) for cell in all_cells()]
    return [x if x["objective"] in ("before", "teacher") else x | {"completion_tokens": 9} for x in lines]


def test_verdicts_stand_question_by_question_with_the_seeds_in_order():
    lines = [line(seed=1, greedy=[0, 0]), line(seed=0, greedy=[1, 0])]
    assert table.values(lines, "greedy").tolist() == [[1, 0], [0, 0]]


def test_seeds_that_disagree_widen_the_interval():
    alike = np.tile(np.arange(64) % 2, (3, 1)).T
    apart = np.stack([np.ones(64), np.zeros(64), np.arange(64) % 2]).T
    assert alike.mean() == apart.mean()
    assert table.interval(apart).half_width > 2 * table.interval(alike).half_width


def test_a_rule_that_is_never_followed_has_an_interval_that_is_no_point():
    assert table.share(np.zeros((48, 3))) == "0.00 [0.00, 0.07]"


def test_a_row_has_seeds_tokens_and_shares_and_a_reference_has_no_seeds():
    lines = [line(objective="before"), *(trained("jsd", seed, tokens=4000 + seed) for seed in (2, 0))]
    before, jsd = rows(table.compliance(table.by_rule(lines)))
    assert before[:4] == ["JSON object", "student before", "", ""]
    assert jsd[:4] == ["", "JSD 0.5", "0, 2", "4001"]
    assert jsd[4].startswith("0.75 [")
    assert jsd[5].startswith("0.50 [")
    assert jsd[6].startswith("0.33 [")


def test_a_difference_is_taken_question_by_question_over_the_seeds_that_both_have():
    lines = [trained("forward_kl", seed=0, greedy=[0, 0, 0, 0]), trained("forward_kl", seed=1)]
    lines += [trained("jsd", seed=1), trained("jsd", seed=2), line(objective="before")]
    ((_, name, seeds, greedy, *_),) = rows(table.differences(table.by_rule(lines)))
    assert (name, seeds) == ("JSD 0.5", "1")
    # The same questions right and wrong: no difference; no resample shows one, so the exact bound stands in.
    assert greedy == "+0.00 [-0.60, +0.60]"
    assert table.differences(table.by_rule([trained("jsd")])) == ""


def test_the_sign_of_a_difference_is_that_of_the_objective_minus_the_baseline():
    lines = [trained("forward_kl", greedy=[1, 1, 1, 1]), trained("sft", greedy=[0, 0, 0, 1])]
    ((*_, greedy, _, _),) = rows(table.differences(table.by_rule(lines)))
    assert greedy.startswith("-0.75 [-1.00, ")


def test_retention_holds_the_cells_nats_and_the_evaluated_texts_and_questions():
    lines = [
        line(objective="before", retention=3.25),
        *(trained("sft", seed, retention=3.3 + seed) for seed in (0, 1)),
    ]
    kept = [evaluated("any", "before", 0), evaluated("json", "sft", 0, tasks=(1, 0, 0), nats=(0.81, 1.01))]
    before, sft = rows(table.retention(table.by_rule(lines), kept))
    assert before[1] == "student before"
    assert before[5].startswith("0.67 [")
    assert sft[:4] == ["JSON object", "SFT on teacher text", "0, 1 (0)", "+0.550 (+0.050 to +1.050)"]
    assert sft[4] == "+0.0100 [+0.0100, +0.0100]"
    assert sft[5].startswith("0.33 [")
    assert sft[6].startswith("-0.33 [")


@pytest.mark.parametrize("kept", [[], [evaluated("json", "jsd", 0)]])
def test_without_the_students_own_evaluation_there_is_no_change_to_show(kept):
    lines = [line(objective="before", retention=3.25), trained("jsd")]
    (row,) = rows(table.retention(table.by_rule(lines), kept))
    assert row == ["JSON object", "JSD 0.5", "0", "+0.250 (+0.250 to +0.250)"]


def test_evaluations_of_different_protocols_are_not_put_into_one_table():
    kept = [evaluated("any", "before", 0), evaluated("json", "jsd", 0, protocol="other")]
    with pytest.raises(ValueError, match="different protocols"):
        table.retention(table.by_rule([trained("jsd")]), kept)


def test_what_is_missing_is_said_and_nothing_where_all_is_there():
    lines = every_cell()
    kept = [evaluated(*cell) for cell in [("any", "before", 0), *all_cells()]]
    assert table.state(lines, kept) == "All 42 cells are done."
    assert table.state(lines, kept[:8]).endswith("put to 1 of 36 adapters so far.")
    fewer = [x for x in lines if (x["objective"], x["rule"]) != ("jsd", "json")]
    named = "; ".join(f"json, jsd, seed {seed}" for seed in range(3))
    assert table.state(fewer, kept) == f"**3 of 42 cells are missing**: {named}."


def test_the_objectives_that_never_followed_are_named_with_their_count():
    lines = [trained("jsd", seed, greedy=[0, 0, 0, 0]) for seed in (0, 1)] + [trained("sft")]
    assert table.never(table.by_rule(lines)) == "Not one greedy answer followed: JSON object, JSD 0.5 (0 of 8)."
    assert table.never(table.by_rule([trained("sft")])) == ""


def test_the_command_prints_and_writes_the_same_tables_and_leaves_the_rest_of_the_page(tmp_path, capsys):
    cells = (line(objective="before", retention=3.25), trained("jsd"), trained("forward_kl"))
    write_jsonl(tmp_path / "r.jsonl", (cell | CONDITIONS for cell in cells))
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    argv = ["--results", str(tmp_path / "r.jsonl"), "--retention-results", str(tmp_path / "none.jsonl")]
    assert main([*argv, "--table"]) == 0
    printed = capsys.readouterr().out.strip()
    for _ in range(2):
        assert main([*argv, "--write", str(page)]) == 0
        assert page.read_text() == f"# Before\n\n{BEGIN}\n\n{printed}\n\n{END}\n\nafter\n"
    assert "cells are missing" in printed
    assert "machine m; date 2026-01-01" in printed


def test_the_page_of_results_shows_the_lines_that_are_kept_here():
    made = table.tables(read_lines(RESULTS, FIELDS), read_lines(RETENTION, FIELDS))
    assert written("results-rules.md", "internalise") == made, (
        "benchmarks/internalise.py --write docs/results-rules.md"
    )
