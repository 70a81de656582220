import pytest

from opd_trl.data.filtering import TraceFilter, filter_rows
from opd_trl.evaluation import graded_text, math_accuracy
from opd_trl.reproduce.measures import right_answer
from opd_trl.trainers.rewards import answer_of


RIGHT = {"role": "assistant", "content": r"\boxed{7}"}
WRONG = {"role": "assistant", "content": r"Maybe \boxed{8}?"}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}
TOOL = {"role": "tool", "name": "add", "content": r"\boxed{8}"}

CONVERSATIONS = [
    (r"\boxed{7}", 1.0),
    ([RIGHT], 1.0),
    ([CALL, TOOL, RIGHT], 1.0),
    ([CALL | {"content": None}, TOOL, RIGHT], 1.0),
    ([CALL | WRONG, TOOL, RIGHT], 1.0),
    ([CALL, TOOL, CALL, TOOL, RIGHT], 1.0),
    ([{"role": "assistant", "content": [{"type": "text", "text": r"\boxed{7}"}]}], 1.0),
    ([RIGHT, TOOL], 1.0),
    ([RIGHT, WRONG], 0.0),
    ([CALL | {"content": None}], 0.0),
    ([RIGHT, TOOL, CALL | {"content": None}], 0.0),
    ([{"role": "tool", "content": r"\boxed{7}"}], 0.0),
    ([], 0.0),
    (None, 0.0),
]


def test_the_last_word_of_the_assistant_is_graded_and_nothing_said_is_wrong():
    completions, wanted = map(list, zip(*CONVERSATIONS, strict=True))
    assert math_accuracy(completions, ["7"] * len(completions)) == wanted
    assert right_answer(completions, ["7"] * len(completions)) == wanted
    assert [graded_text(completion) == r"\boxed{7}" for completion in completions] == [value == 1 for value in wanted]


def test_what_a_sibling_is_shown_is_what_was_graded():
    thought = {"role": "assistant", "content": "<think>8?</think>It is 7."}
    assert answer_of([CALL, TOOL, thought]) == "It is 7."
    assert answer_of([CALL | {"content": None}]) == ""


def test_a_trace_is_checked_by_its_last_word():
    row = {"prompt": "3 + 4?", "answer": "7"}
    rows = [row | {"completion": [CALL | WRONG, RIGHT]}, row | {"completion": [RIGHT, WRONG]}]
    kept, report = filter_rows(rows, TraceFilter(need_box=False), judge=math_accuracy)
    assert kept == rows[:1]
    assert report["rejected"] == {"wrong answer": 1}


@pytest.mark.parametrize("content", [None, 7, {"text": "7"}])
def test_content_that_is_no_text_is_a_wrong_answer(content):
    assert graded_text([{"role": "assistant", "content": content}]) == ""
