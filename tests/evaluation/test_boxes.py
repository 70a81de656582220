import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_trl.evaluation.boxes import REASONS, boxed_answers, last_boxed_answer, single_boxed_answer


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("no box", []),
        (r"\boxed{1} and \fbox{2}", ["1", "2"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed {7}", ["7"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{\boxed{7}}", ["7"]),
        (r"\boxed{x = \boxed{7}}", ["7"]),
        (r"\\boxed{7}", ["7"]),
        (r"\\\boxed{7}", ["7"]),
        (r"\boxed 7 and \boxedx{8}", []),
        (r"\boxed{1 and \boxed{2}", ["2"]),
        (r"} } \boxed{1} }", ["1"]),
        (r"\boxed{}", [""]),
        (r"\boxed{a}\boxed{b", ["a"]),
    ],
)
def test_closed_boxes_are_found_innermost_first(text, answers):
    assert boxed_answers(text) == answers


@pytest.mark.parametrize(
    ("text", "answer", "reason"),
    [
        (r"So \boxed{7}.", "7", None),
        (r"\boxed{7} \boxed{ 7}", "7", None),
        (r"\boxed{} then \boxed{7}", "7", None),
        (r"\boxed{7} \boxed{8}", None, "several boxes"),
        (r"It is 7.", None, "no box"),
        (r"\boxed{7} \boxed{8", None, "unclosed box"),
        (r"\boxed{ }", None, "empty box"),
        (r"\boxed{" + "7" * 1001 + "}", None, "too long"),
        ("", None, "no box"),
    ],
)
def test_one_answer_or_the_reason_why_there_is_none(text, answer, reason):
    assert single_boxed_answer(text) == (answer, reason)


@pytest.mark.parametrize(
    ("text", "answer", "reason"),
    [
        (r"\boxed{7} \boxed{8}", "8", None),
        (r"\boxed{7} \boxed{8", None, "unclosed box"),
        (r"\boxed{7 \boxed{8}", "8", None),
        (r"\boxed{7} \boxed{}", None, "empty box"),
        ("7", None, "no box"),
    ],
)
def test_the_last_box_is_the_answer_of_a_model(text, answer, reason):
    assert last_boxed_answer(text) == (answer, reason)


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 200_000,
        r"\boxed{" * 200_000 + "}" * 200_000,
        r"\boxed{" + "{" * 1_000_000,
        "\\" * 5_000_000 + r"\boxed{3}",
        r"\boxed{" + "x" * 10_000_000 + "}",
        (r"\boxed" + " " * 100) * 50_000,
        r"\boxed" + " " * 10_000_000,
    ],
    ids=["opened", "nested", "braces", "backslashes", "long", "blanks", "one blank run"],
)
def test_a_hostile_text_takes_seconds(text):
    start = time.process_time()
    single_boxed_answer(text)
    assert time.process_time() - start < 10


@given(st.text(alphabet="\\{} boxed12", max_size=60))
def test_any_text_has_an_answer_or_a_known_reason(text):
    for found in (single_boxed_answer(text), last_boxed_answer(text)):
        assert (found.answer is None) != (found.reason is None)
        assert found.reason is None or found.reason in REASONS


@given(st.recursive(st.text(alphabet="ab1", min_size=1, max_size=3), lambda x: x.map("{{{}}}".format), max_leaves=4))
def test_what_is_put_into_a_box_comes_out(content):
    assert boxed_answers(rf"see \boxed{{{content}}} there") == [content]
