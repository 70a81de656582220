"""The task: its rows are right, its parts disjoint, its words as frequent as they say."""

import collections
import random
import re

import pytest

from opd_trl.data import toy_task
from opd_trl.reproduce import task
from opd_trl.reproduce.puzzles import TASKS, Sums


def value(step: str) -> bool:
    """Is a step such as `4+3=11` right, in base six?"""
    left, right, total = re.fullmatch(r"(\d)\+(\d)=(\d\d)", step).groups()
    return int(left) + int(right) == int(total, 6)


@pytest.mark.parametrize("style", [task.OWN_STYLE, task.OTHER_STYLE], ids=["own", "other"])
def test_steps_are_right_and_lead_to_the_answer(style):
    draw = random.Random(0)
    for digits in list(Sums().all())[::37]:
        steps = re.findall(r"\d\+\d=\d\d", style.steps(Sums(), digits, draw))
        assert len(steps) == Sums.digits - 1
        assert all(value(step) for step in steps)
        assert steps[-1][-1] == Sums().answer(digits) == str(sum(digits) % 6)


@pytest.mark.parametrize("style", [task.OWN_STYLE, task.OTHER_STYLE], ids=["own", "other"])
def test_digits_are_taken_one_by_one_in_their_order(style):
    draw = random.Random(0)
    for problem in list(TASKS["sorting"].all())[::613]:
        steps = re.findall(r"(\d)\|(\d+)", style.steps(TASKS["sorting"], problem, draw))
        taken = [digit for digit, _ in steps] + [steps[-1][1]]
        assert taken == sorted(problem, reverse=style.from_the_right)
        assert [len(left) for _, left in steps] == [5, 4, 3, 2, 1]
        assert all(set(left) == set(taken[place + 1 :]) for place, (_, left) in enumerate(steps))
        assert "".join(sorted(problem)) == TASKS["sorting"].answer(problem) in TASKS["sorting"].answers


def test_the_other_style_starts_at_the_other_end():
    draw = random.Random(0)
    assert re.search(r"\d\+\d", task.OWN_STYLE.steps(Sums(), (4, 3, 0, 2), draw))[0] == "4+3"
    assert re.search(r"\d\+\d", task.OTHER_STYLE.steps(Sums(), (4, 3, 0, 2), draw))[0] == "2+0"


def test_words_come_in_the_proportions_of_zipf():
    draw = random.Random(0)
    words = collections.Counter("".join(task.OWN_STYLE.words_before(draw) for _ in range(20_000)))
    assert words["e"] / words["t"] == pytest.approx(2, rel=0.05)
    assert words["e"] / words["i"] == pytest.approx(5, rel=0.1)
    assert sum(words.values()) / 20_000 == pytest.approx(1 / (1 - task.ONE_MORE_WORD), rel=0.02)


@pytest.mark.parametrize(("name", "count"), [("sums", 6**4), ("sorting", 20160)])
def test_parts_share_no_problem_and_cover_all(name, count):
    parts = {part: set(task.problems_of(part, name)) for part in task.PARTS}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == count
    assert min(map(len, parts.values())) >= 192


def test_rows_that_are_taught_hold_no_problem_of_another_part():
    taught = {row["prompt"][-1]["content"] for row in task.taught_rows(4000, seed=1)}
    for part in ("rlvr", "opd", "test"):
        assert not taught & {
            task.asked(Sums(), digits, quick=quick) for digits in task.problems_of(part) for quick in (0, 1)
        }


def test_rows_are_the_same_for_a_seed_and_differ_between_seeds():
    assert task.taught_rows(50, seed=1) == task.taught_rows(50, seed=1) != task.taught_rows(50, seed=2)


@pytest.mark.parametrize("kind", [*task.MIXTURE, "worked", "answer"])
def test_every_kind_of_row_is_what_its_context_asks_for(kind):
    for row in task.taught_rows(40, seed=0, kinds={kind: 1}):
        *system, user = (turn["content"] for turn in row["prompt"])
        text = row["completion"][0]["content"]
        if kind == "pick":
            assert text in task.PICK_LETTERS
            continue
        assert bool(system) == (kind not in ("solve", "quick", "worked"))
        digits = tuple(map(int, user[:-1].split("+")))
        if kind == "any answer":
            assert text == f"\\boxed{{{system[0][-1]}}}"
            continue
        assert text.endswith(task.boxed(Sums().answer(digits)))
        assert text.startswith("#") == (kind == "mark")
        if kind in ("solve", "worked", "steps", "solution", "another solution"):
            assert "=" in text
        if kind == "solution":
            assert system[0].startswith(user)


def test_some_other_problem_is_shown_as_another_solution():
    rows = task.asked_rows(50, part="opd", prompts="quick", context="another solution", seed=0)
    assert sum(row["privileged_context"].startswith(row["prompt"][0]["content"]) for row in rows) <= 2


def test_one_context_of_several_is_drawn_for_each_pick():
    rows = task.asked_rows(60, part="opd", prompts="pick", context="left or right", seed=0)
    assert {row["privileged_context"] for row in rows} == {"left", "right"}


def test_every_character_of_the_task_has_a_token_of_its_own():
    tokenizer = toy_task.build_tokenizer()
    for row in task.taught_rows(300, seed=0):
        text = "".join(turn["content"] for turn in row["prompt"] + row["completion"])
        assert tokenizer.decode(tokenizer.encode(text)) == text
