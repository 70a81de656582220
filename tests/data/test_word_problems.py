"""The word problems: right, in two styles, in disjoint parts, for a model that somebody has trained."""

import re

import pytest

from opd_trl.cli.toy import main
from opd_trl.data.splits import prompt_key
from opd_trl.data.word_problems import POOL, word_problems
from opd_trl.evaluation import math_accuracy

from .conftest import read


def test_the_parts_share_no_prompt_and_no_seed_trains_on_anothers_test_set():
    made = [word_problems(seed) for seed in (0, 1)]
    keys = [{part: {prompt_key(row["prompt"]) for row in rows} for part, rows in parts.items()} for parts in made]
    assert keys[0] == keys[1]
    assert keys[0].pop("other") == keys[0]["sft"]
    assert sum(map(len, keys[0].values())) == len(set().union(*keys[0].values())) == POOL
    assert made[0]["sft"] != made[1]["sft"]


@pytest.mark.parametrize("part", ["rlvr", "opd", "test"])
def test_every_step_of_a_solution_is_right_and_uses_the_numbers_of_the_story_in_their_order(part):
    for row in word_problems(0)[part]:
        steps = re.findall(r"(\d+)([-+*])(\d+)=(\d+)", row["solution"])
        results = [{"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] for a, sign, b, _ in steps]
        assert [int(step[3]) for step in steps] == results
        assert [int(step[0]) for step in steps[1:]] == results[:-1]
        question = row["prompt"][1]["content"].replace("doubles", "2").replace("triples", "3")
        assert re.findall(r"\d+", question) == [steps[0][0], *(step[2] for step in steps)]
        assert row["answer"] == steps[-1][3] == row["solution"].split(": ")[1]
        assert min(results) >= 1
        assert max(results) <= 20


def test_one_completion_in_two_is_worked_and_the_other_style_always_is():
    parts = word_problems(0)
    answers = {
        prompt_key(row["prompt"]): re.search(r"boxed\{(\d+)\}", row["completion"][0]["content"])[1]
        for row in parts["sft"]
    }
    texts = [row["completion"][0]["content"] for row in parts["sft"]]
    assert sum("=" in text for text in texts) / len(texts) == pytest.approx(0.5, abs=0.03)
    other = [row["completion"][0]["content"] for row in parts["other"]]
    assert all(text.startswith("We start with ") and "=" not in text for text in other)
    right = [answers[prompt_key(row["prompt"])] for row in parts["other"]]
    assert math_accuracy(other[:200], right[:200]) == [1.0] * 200


def test_the_command_writes_the_files_and_no_model(here, capsys):
    assert main(["--task", "word_problems", "--output", "words"]) == 0
    assert sorted(path.name for path in (here / "words").iterdir()) == [
        "README.md", "opd.jsonl", "other.jsonl", "rlvr.jsonl", "sft.jsonl", "test.jsonl",
    ]  # fmt: skip
    assert "model" not in capsys.readouterr().out
    assert len(read(here / "words" / "test.jsonl")) == len(word_problems(0)["test"])


def test_a_model_of_somebody_else_in_the_folder_is_not_in_the_way(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert main(["--task", "word_problems", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "model" / "config.json").read_text() == "{}"
