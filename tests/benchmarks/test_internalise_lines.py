import json

import pytest
from internalise import main
from internalise_lines import add_line, all_cells, cell_of, merge, open_cells, read_lines, token_budget, write_lines

from .lines import line, trained


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


def files(tmp_path, **content):
    """Results files by name."""
    for name, lines in content.items():
        write_lines(tmp_path / f"{name}.jsonl", lines)
    return [tmp_path / f"{name}.jsonl" for name in content]


def test_lines_of_several_processes_are_merged_in_the_order_of_work_and_shared_ones_stand_once(tmp_path):
    shared = line(objective="before")
    target, a, b = files(
        tmp_path,
        target=[line(rule="over_and_out"), shared],
        a=[shared, line(seed=1), line(rule="pirate", seed=1)],
        b=[line(seed=2), shared],
    )
    assert merge(target, [a, b]) == (5, 3)
    assert [cell_of(entry) for entry in read_lines(target)] == [
        ("json", "before", 0),
        ("pirate", "jsd", 1),
        ("json", "jsd", 1),
        ("json", "jsd", 2),
        ("over_and_out", "jsd", 0),
    ]
    assert merge(target, [a, b]) == (5, 0)
    assert [path.suffix for path in tmp_path.iterdir()] == 3 * [".jsonl"]


def test_different_lines_of_a_cell_are_refused_and_nothing_is_written(tmp_path, capsys):
    target, a, b = files(tmp_path, target=[line(seed=2)], a=[line(wall_seconds=1)], b=[line(wall_seconds=2)])
    before = target.read_text()
    assert main(["--results", str(target), "--merge", str(a), str(b)]) == 2
    error = capsys.readouterr().err
    assert "a.jsonl and" in error
    assert "('json', 'jsd', 0), in wall_seconds" in error
    assert target.read_text() == before


def test_a_line_with_a_field_more_is_a_different_line(tmp_path):
    target, a = files(tmp_path, target=[line()], a=[line(retention=None)])
    with pytest.raises(ValueError, match="in retention"):
        merge(target, [a])


def test_a_results_file_that_is_missing_is_named_and_nothing_is_written(tmp_path):
    (a,) = files(tmp_path, a=[line()])
    with pytest.raises(ValueError, match=r"none\.jsonl is no file"):
        merge(tmp_path / "target.jsonl", [a, tmp_path / "none.jsonl"])
    assert not (tmp_path / "target.jsonl").exists()


def test_the_command_merges_into_its_results(tmp_path, capsys):
    a, b = files(tmp_path, a=[line(seed=1)], b=[line(seed=2)])
    assert main(["--results", str(tmp_path / "new" / "r.jsonl"), "--merge", str(a), str(b)]) == 0
    assert "2 cells, 2 of them added" in capsys.readouterr().out
