import json

import internalise
import internalise_table as table
import numpy as np
import pytest
from internalise import add_line, all_cells, main, open_cells, read_lines, token_budget


def line(rule="json", objective="jsd", seed=0, **content):
    verdicts = {"greedy": [1, 1, 0, 1], "sampled": [1, 0, 0, 1], "elsewhere": [0, 0, 1]}
    return {"rule": rule, "objective": objective, "seed": seed, **verdicts, **content}


def trained(objective, seed=0, tokens=4000, **content):
    return line(objective=objective, seed=seed, steps=20, completion_tokens=tokens, retention=3.5, **content)


CONDITIONS = {"commit": "abc", "machine": "m", "date": "2026-01-01", "torch": "2", "trl": "1"}


def test_the_references_come_first_then_seed_after_seed_and_sft_after_what_it_matches():
    cells = all_cells()
    assert [cell[1] for cell in cells[:6]] == ["before", "teacher"] * 3
    assert len(cells) == 6 + 36
    assert [cell[2] for cell in cells[6:]] == [0] * 12 + [1] * 12 + [2] * 12
    for rule, objective, seed in cells[6:]:
        if objective != "sft":
            assert cells.index((rule, objective, seed)) < cells.index((rule, "sft", seed))


def test_the_further_objectives_come_last():
    assert all_cells(further=True)[:42] == all_cells()
    assert {cell[1] for cell in all_cells(further=True)[42:]} == {"default", "mixed"}


def test_a_cell_with_a_line_is_not_run_again(tmp_path):
    add_line(tmp_path / "r.jsonl", line(seed=1))
    todo = open_cells(all_cells(), read_lines(tmp_path / "r.jsonl"))
    assert ("json", "jsd", 1) not in todo
    assert todo == [cell for cell in all_cells() if cell != ("json", "jsd", 1)]


def test_lines_are_added_and_nothing_else_is_left_in_the_folder(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    for seed in (0, 1):
        add_line(path, line(seed=seed))
    assert [entry["seed"] for entry in read_lines(path)] == [0, 1]
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("text", ["{", "[]", '{"rule": "json"}', "\n"])
def test_a_line_that_is_no_cell_is_named(tmp_path, text):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(line()) + "\n" + text + "\n")
    with pytest.raises(ValueError, match="line 2 is no result of a cell"):
        read_lines(path)


def test_two_lines_of_a_cell_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(2 * (json.dumps(line()) + "\n"))
    with pytest.raises(ValueError, match="more than one line"):
        read_lines(path)


def test_sft_takes_the_mean_tokens_of_the_on_policy_cells_of_its_rule_and_seed():
    lines = [trained("stop_gradient_topk", tokens=4000), trained("forward_kl", tokens=3000)]
    lines += [trained("jsd", tokens=3500), trained("jsd", seed=1, tokens=1), trained("default", tokens=1)]
    assert token_budget(lines, "json", 0) == 3500
    with pytest.raises(ValueError, match="needs the tokens of stop_gradient_topk, forward_kl"):
        token_budget(lines, "json", 1)


def test_a_run_goes_on_from_its_lines_and_keeps_them_when_a_cell_fails(tmp_path, monkeypatch, capsys):
    asked = []

    def worker(cell, args, budget):
        asked.append((cell, budget))
        if cell[1] == "sft":
            raise RuntimeError("out of memory")
        return line(*cell, completion_tokens=100, wall_seconds=1.0)

    monkeypatch.setattr(internalise, "run_in_fresh_process", worker)
    argv = ["--results", str(tmp_path / "r.jsonl"), "--output", str(tmp_path), "--rule", "json", "--seed", "0"]
    assert main(argv) == 2
    assert "out of memory" in capsys.readouterr().err
    assert [cell[1] for cell, _ in asked] == ["before", "teacher", "stop_gradient_topk", "forward_kl", "jsd", "sft"]
    assert main(argv) == 2
    assert asked[6:] == [(("json", "sft", 0), 100)]
    assert len(read_lines(tmp_path / "r.jsonl")) == 5
    assert all(entry["commit"] for entry in read_lines(tmp_path / "r.jsonl"))


def test_the_bootstrap_agrees_with_the_normal_interval_where_seeds_are_alike():
    verdicts = np.tile(np.arange(400) % 2, (3, 1)).astype(float)
    low, high = table.interval(verdicts, resamples=2000)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.006)


def test_seeds_that_disagree_widen_the_interval():
    alike = np.tile(np.arange(64) % 2, (3, 1)).astype(float)
    apart = np.stack([np.ones(64), np.zeros(64), np.arange(64) % 2]).astype(float)
    assert alike.mean() == apart.mean()
    assert np.diff(table.interval(apart, resamples=500)) > 2 * np.diff(table.interval(alike, resamples=500))


def test_a_difference_is_taken_question_by_question_over_the_seeds_that_both_have():
    sft = [trained("sft", seed=0), trained("sft", seed=1)]
    jsd = [trained("jsd", seed=1), trained("jsd", seed=2)]
    ((name, seeds, greedy, *_),) = table.differences({"jsd": jsd, "sft": sft, "before": [line(objective="before")]})
    assert (name, seeds) == ("JSD 0.5", "1")
    # The same questions right and wrong: no difference and no spread, whatever the questions.
    assert greedy == "0.00 [0.00, 0.00]"


def test_the_table_has_a_row_per_objective_with_seeds_tokens_and_change_of_retention(tmp_path, capsys):
    cells = [
        line(objective="before", retention=3.25),
        *(trained(name, seed) for name in ("jsd", "sft") for seed in (0, 1)),
    ]
    for cell in cells:
        add_line(tmp_path / "r.jsonl", cell | CONDITIONS)
    assert main(["--results", str(tmp_path / "r.jsonl"), "--table"]) == 0
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if row.startswith("| ")]
    jsd = next(row for row in rows if row[0] == "| JSD 0.5")
    assert jsd[1:3] == ["0, 1", "4000"]
    assert jsd[3].startswith("0.75 [")
    assert jsd[6] == "+0.250 (+0.250 to +0.250) |"
    before = next(row for row in rows if row[0] == "| student before")
    assert (before[1:3], before[6]) == (["", ""], "3.250 |")


def test_the_plot_is_written(tmp_path):
    for rule in ("json", "pirate"):
        add_line(tmp_path / "r.jsonl", trained("jsd") | {"rule": rule} | CONDITIONS)
    picture = tmp_path / "docs" / "p.png"
    assert main(["--results", str(tmp_path / "r.jsonl"), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
