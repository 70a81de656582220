import json
import re

import internalise
import pytest
from internalise import RESULTS, main
from internalise_lines import add_line, read_lines

from .lines import CONDITIONS, line, trained


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


def write_answers(folder, cell, texts):
    place = folder / "-".join(map(str, cell))
    place.mkdir()
    (place / "answers.json").write_text(json.dumps(texts))


def test_stored_answers_are_judged_again_and_a_verdict_that_changed_is_named(tmp_path, capsys):
    texts = {"greedy": ['{"answer": "Oslo"}', "Oslo"], "sampled": ["7"], "elsewhere": ['{"answer": ']}
    write_answers(tmp_path, ("json", "jsd", 0), texts)
    results = tmp_path / "r.jsonl"
    argv = ["--recheck", "--results", str(results), "--output", str(tmp_path)]
    add_line(results, line(greedy=[1, 0], sampled=[0], elsewhere=[1]))
    assert main(argv) == 0
    assert "4 answers judged again" in capsys.readouterr().out
    results.unlink()
    add_line(results, line(greedy=[1, 1], sampled=[0], elsewhere=[1]))
    assert main(argv) == 2
    assert "answers.json, greedy 1: its line says 1" in capsys.readouterr().err


def test_a_cell_without_answers_cannot_be_judged_again(tmp_path, capsys):
    add_line(tmp_path / "r.jsonl", line())
    assert main(["--recheck", "--results", str(tmp_path / "r.jsonl"), "--output", str(tmp_path)]) == 2
    assert "json-jsd-0/answers.json is missing" in capsys.readouterr().err


def test_the_plot_is_written(tmp_path):
    for rule in ("json", "pirate"):
        add_line(tmp_path / "r.jsonl", trained("jsd") | {"rule": rule} | CONDITIONS)
    picture = tmp_path / "docs" / "p.png"
    assert main(["--results", str(tmp_path / "r.jsonl"), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("action", ["--table", "--plot=p.png"])
def test_without_a_finished_cell_there_is_nothing_to_show(tmp_path, monkeypatch, capsys, action):
    monkeypatch.chdir(tmp_path)
    assert main(["--results", "none.jsonl", action]) == 2
    assert "no finished cell" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_results_that_are_kept_here_hold_one_verdict_per_question():
    for entry in read_lines(RESULTS):
        assert {len(entry[name]) for name in ("greedy", "sampled", "elsewhere")} == {48}
        assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", entry["commit"])
