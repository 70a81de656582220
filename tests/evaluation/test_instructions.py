import json
from pathlib import Path

import pytest

from opd_trl.evaluation.instruction_judge import InstructionJudge
from opd_trl.evaluation.instructions import follow_instructions, instruction_names, judgeable


IFEVAL = Path(__file__).parents[2].parent / "shared" / "data" / "ifeval" / "input_data.jsonl"


def follows(name, answer, prompt="Say something.", **kwargs):
    return follow_instructions(prompt, [name], [kwargs], answer)


@pytest.mark.parametrize(
    ("name", "kwargs", "right", "wrong"),
    [
        ("punctuation:no_comma", {}, "Hello there.", "Hello, there."),
        ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "one two three", "one two"),
        ("keywords:existence", {"keywords": ["fjord"]}, "A fjord.", "A lake."),
        ("detectable_format:json_format", {}, '{"a": 1}', "a: 1"),
        (
            "change_case:english_lowercase",
            {},
            "all the letters of this sentence are small ones.",
            "Not all letters here are small.",
        ),
        ("startend:end_checker", {"end_phrase": "The end."}, "So it was. The end.", "So it was."),
    ],
)
def test_an_instruction_tells_right_from_wrong(name, kwargs, right, wrong):
    assert follows(name, right, **kwargs).strict == [True]
    assert follows(name, wrong, **kwargs).strict == [False]


def test_a_loose_judgement_forgives_a_first_line():
    followed = follows("punctuation:no_comma", "Sure, here:\nHello there.")
    assert followed == ([False], [True])


def test_an_empty_answer_follows_nothing():
    assert (
        follow_instructions("p", ["punctuation:no_comma", "startend:quotation"], [{}, {}], " ") == ([False] * 2,) * 2
    )


def test_an_unknown_instruction_is_refused():
    with pytest.raises(ValueError, match=r"unknown instruction 'punctuation:no_coma'.*punctuation:no_comma"):
        follows("punctuation:no_coma", "x")
    with pytest.raises(ValueError, match=r"0 sets of arguments for 1 instructions"):
        follow_instructions("p", ["punctuation:no_comma"], [], "x")


def test_an_answer_that_takes_too_long_follows_nothing():
    task = {"prompt": "p", "instruction_ids": ["punctuation:no_comma"], "kwargs": [{}], "answer": "x"}
    slow = {"instruction_ids": ["detectable_content:number_placeholders"], "kwargs": [{"num_placeholders": 1}]}
    judge = InstructionJudge(workers=1, time_limit=0.5)
    try:
        results = judge([task, {**task, **slow, "answer": "[" * 200_000}, task])
    finally:
        judge.close()
    assert results[0] == results[2] == (([True], [True]), None)
    assert results[1] == (([False], [False]), "timeout")


@pytest.mark.skipif(not IFEVAL.is_file(), reason="the IFEval prompts are not beside the checkout")
def test_the_published_prompts_name_instructions_that_are_known():
    rows = [json.loads(line) for line in IFEVAL.read_text(encoding="utf-8").splitlines()]
    used = {name for row in rows for name in row["instruction_id_list"]}
    assert used == set(instruction_names())
    ready = [row for row in rows if judgeable(row["instruction_id_list"])]
    assert len(ready) >= 477
    for row in ready[::10]:
        followed = follow_instructions(row["prompt"], row["instruction_id_list"], row["kwargs"], "A short answer.")
        assert len(followed.strict) == len(row["instruction_id_list"])
