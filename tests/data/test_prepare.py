import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_trl.data.adapters import ADAPTERS, mapped
from opd_trl.data.decontaminate import Contamination, evaluation_prompts
from opd_trl.data.files import DataError, read_jsonl
from opd_trl.data.prepare import prepare
from opd_trl.data.splits import parse_parts, part_of, position, prompt_key, split_rows

from .conftest import user


PARTS = {"sft": 0.4, "rlvr": 0.3, "opd": 0.3}
LONG = "a train leaves the station at noon and travels north at sixty miles per hour for three hours"


def rows_of(*texts: str) -> list:
    return [{"prompt": user(text)} for text in texts]


def test_the_split_is_fixed_for_all_time():
    # These stand in files that people have trained on: another split would mix their test sets into training.
    assert [part_of(f"question {i}", PARTS) for i in range(8)] == [
        "opd",
        "sft",
        "rlvr",
        "opd",
        "sft",
        "opd",
        "opd",
        "opd",
    ]


def test_parts_are_disjoint_and_complete_whatever_the_order():
    rows = rows_of(*(f"question {i}" for i in range(500)))
    split = split_rows(rows, PARTS)
    shuffled = random.Random(0).sample(rows, len(rows))
    again = split_rows(shuffled, PARTS)
    for part in PARTS:
        texts = [{row["prompt"][0]["content"] for row in made[part]} for made in (split, again)]
        assert texts[0] == texts[1]
        assert len(texts[0]) / 500 == pytest.approx(PARTS[part], abs=0.08)
    assert sum(map(len, split.values())) == 500


def test_the_rest_is_in_no_part_and_another_salt_splits_anew():
    rows = rows_of(*(f"question {i}" for i in range(300)))
    split = split_rows(rows, {"sft": 0.2, "opd": 0.2})
    assert len(split["rest"]) > 120
    other = split_rows(rows, {"sft": 0.2, "opd": 0.2}, salt="b")
    assert split["sft"] != other["sft"]


def test_case_blanks_and_forms_of_letters_make_no_difference_and_signs_do():
    assert prompt_key("  \uff37hat IS\n2 + 2? ") == prompt_key("what is 2 + 2?")
    assert prompt_key("2 + 2?") != prompt_key("2 - 2?")


@given(st.text(string.printable, min_size=1))
def test_what_does_not_change_the_key_does_not_change_the_part(text):
    variant = "  " + text.upper().replace(" ", " \n ") + "\t"
    if prompt_key(text) == prompt_key(variant):  # `ß`.upper() and the like
        assert part_of(text, PARTS) == part_of(variant, PARTS)
    assert 0 <= position(text) < 1
    assert part_of(user(text), PARTS) == part_of([{"role": "system", "content": "s"}, *user(text)], PARTS)


@pytest.mark.parametrize(
    "text", ["sft", "sft=0", "sft=1.5", "sft=-0.1", "sft=x", "a=0.5,a=0.5", "rest=0.5", "", "a b=1"]
)
def test_parts_that_mean_nothing_are_refused(text):
    with pytest.raises(DataError, match=r"is not a part.*sft=0.4,rlvr=0.3,opd=0.3"):
        parse_parts(text)


def test_shares_above_one_are_refused_and_rounding_is_not():
    with pytest.raises(DataError, match=r"add up to 1.1"):
        parse_parts("a=0.6,b=0.5")
    assert sum(parse_parts("a=0.1,b=0.2,c=0.3,d=0.4").values()) == pytest.approx(1)
    assert None not in {part_of(str(i), {"a": 0.1, "b": 0.2, "c": 0.7}) for i in range(2000)}


def test_an_empty_part_is_an_error():
    with pytest.raises(DataError, match=r"no row falls into .*2 rows in all"):
        split_rows(rows_of("1?", "2?"), {"sft": 0.5, "opd": 0.25, "test": 0.25})


def test_duplicates_and_empty_prompts_are_dropped_and_counted():
    made = prepare([{"q": text} for text in ("1+1?", " 1+1? ", "1+2?", "", "1+2?")], mapped({"prompt": "q"}))
    assert [row["prompt"][0]["content"] for row in made.rows] == ["1+1?", "1+2?"]
    assert made.report() == {
        "read": 5,
        "kept": 2,
        "rejected": {"duplicate prompt": 2, "empty prompt": 1},
        "contaminated": [],
    }


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (None, "empty prompt"),
        ([], "empty prompt"),
        (7, "the prompt is of type int"),
        ([{"role": "user", "content": None}], "turn 0 (user) of the prompt has no content"),
        ([{"from": "human", "value": "1+1?"}], "turn 0 of the prompt has no role (its keys: 'from', 'value')"),
        ([*user("1+1?"), {"role": "assistant", "content": "2"}], "the prompt ends with an assistant turn"),
        ([{"role": "system", "content": "Be brief."}], "the prompt has no user turn"),
        ("a\ud83d", "a text holds half a surrogate pair, \\ud83d at 1"),
    ],
)
def test_prompts_that_a_trainer_would_refuse_are_left_out_and_counted(prompt, reason):
    made = prepare([{"q": "1+1?"}, {"q": prompt}], mapped({"prompt": "q"}))
    assert (len(made.rows), made.rejected) == (1, {reason: 1})


def test_where_no_row_is_left_the_commonest_reason_says_what_to_do():
    answered = [{"q": [*user(f"{i}?"), {"role": "assistant", "content": "2"}]} for i in range(2)]
    with pytest.raises(
        DataError, match=r"left of 3 \(2 the prompt ends with an assistant turn, 1 .*all turns but the last"
    ):
        prepare([{"q": ""}, *answered], mapped({"prompt": "q"}))


def test_half_a_surrogate_pair_is_found_in_every_column():
    made = prepare([{"q": "1?", "a": "b"}, {"q": "2?", "a": "\udc00"}], mapped({"prompt": "q", "answer": "a"}))
    assert made.rejected == {"a text holds half a surrogate pair, \\udc00 at 0": 1}


def test_lists_of_text_parts_become_one_text_and_other_parts_stay():
    image = {"type": "image", "image": "a.png"}
    rows = [{"q": [{"role": "user", "content": [*more, {"type": "text", "text": "1+1?"}]}]} for more in ([], [image])]
    made = prepare(rows, mapped({"prompt": "q"}))
    assert [row["prompt"] for row in made.rows] == [user("1+1?"), rows[1]["q"]]


def test_nothing_left_is_an_error_with_the_reasons():
    with pytest.raises(DataError, match=r"no row is left of 2 \(2 empty prompt\)"):
        prepare([{"q": ""}, {"q": " "}], mapped({"prompt": "q"}))
    with pytest.raises(DataError, match="no row is left of 0"):
        prepare([], mapped({"prompt": "q"}))


def test_a_box_is_required_where_asked_for_and_the_reasons_are_counted():
    texts = ["\\boxed{1}", "none", "\\boxed{1} \\boxed{2}", "\\boxed{1", "\\boxed{}", "\\boxed{" + "1" * 2000 + "}"]
    rows = [{"prompt": f"{i}?", "privileged_context": text} for i, text in enumerate(texts)]
    to_row = mapped({"prompt": "prompt", "privileged_context": "privileged_context"})
    made = prepare(rows, to_row, box_column="privileged_context")
    assert [row["answer"] for row in made.rows] == ["1"]
    assert made.rejected == {
        f"privileged_context: {reason}": 1
        for reason in ("no box", "several boxes", "unclosed box", "empty box", "too long")
    }
    assert len(prepare(rows, to_row).rows) == 6
    with pytest.raises(DataError, match=r"'completion', which the rows do not have"):
        prepare(rows, to_row, box_column="completion")


def test_the_rows_own_answer_wins_over_the_box():
    rows = [{"prompt": "1?", "answer": "0.5", "privileged_context": "\\boxed{1/2}"}]
    to_row = mapped({name: name for name in rows[0]})
    assert prepare(rows, to_row, box_column="privileged_context").rows[0]["answer"] == "0.5"


def test_a_row_that_shares_thirteen_words_with_an_evaluation_row_is_found_and_listed():
    evaluation = Contamination(evaluation_prompts(rows_of("1?", f"Tell me: {LONG}. Where is it?"), "math500"))
    rows = [{"q": f"{LONG.upper()}! How far is that?"}, {"q": "a train leaves at noon. How far?"}]
    made = prepare(rows, mapped({"prompt": "q"}), evaluation=evaluation)
    assert made.rejected == {"in an evaluation set": 1}
    assert made.contaminated == [
        {"row": 1, "found_in": "math500 row 2", "words": " ".join(LONG.split()[:13])},
    ]


@pytest.mark.parametrize(
    ("evaluation", "train", "found"),
    [
        (LONG, " ".join(LONG.split()[2:15]), True),  # 13 words
        (LONG, f"say, {' '.join(LONG.split()[:12])} then stops, what is it that one can now tell", False),  # 12 words
        ("what is the least prime above a hundred", "tell me: What is the least prime above a hundred? now", True),
        ("tell me what is the least prime above a hundred now", "What is the least prime above a hundred?", True),
        ("what is the least prime above nine", "tell me, what is the least prime above nine, or", False),  # 7 words
        ("2+2=", " 2+2= ", True),
        ("2+2=", "2-2=", False),
        ("2+2=", "what is 2+2= and why", False),
    ],
)
def test_short_texts_count_as_a_whole(evaluation, train, found):
    assert (Contamination([(evaluation, "test")]).match(train) is not None) == found


def test_an_ngram_below_the_shortest_text_is_refused():
    with pytest.raises(ValueError, match="at least min_words = 8"):
        Contamination([], ngram=3)


def test_real_evaluation_problems_are_found_in_themselves_and_not_in_each_other(real):
    problems = [ADAPTERS["math500"].to_row(row) for row in read_jsonl(real("math500/test.jsonl"))]
    evaluation = Contamination(evaluation_prompts(problems, "math500"))
    asked = [row["prompt"][0]["content"] for row in problems]
    assert all(evaluation.match(f"Please solve this. {text}") or len(text.split()) < 13 for text in asked)
    school = [ADAPTERS["gsm8k"].to_row(row)["prompt"] for row in read_jsonl(real("gsm8k/test.jsonl"))]
    assert [prompt for prompt in school if evaluation.match(prompt)] == []


def test_the_answer_of_a_row_becomes_the_text_that_it_is_read_from():
    answers = [7, 1e-05, 0.5, True, [1, 2], "1, 2", "worked out\n#### 8"]
    rows = [{"q": f"{i}?", "a": answer} for i, answer in enumerate(answers)]
    made = prepare(rows, mapped({"prompt": "q", "answer": "a"})).rows
    assert [row["answer"] for row in made] == ["7", "1e-05", "0.5", "True", "1, 2", "1, 2", "worked out\n#### 8"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x²", "x2", False),
        ("x²", "x^2", True),
        ("10⁻³", "10-3", False),
        ("a₁", "a1", False),
        ("2½", "21/2", False),
        ("2^{10}", "210", False),
        ("\uff38 + 1", "x + 1", True),
    ],
)
def test_what_stands_higher_or_lower_tells_two_problems_apart(one, other, same):
    rows = [{"q": f"What is {text}?"} for text in (one, other)]
    assert len(prepare(rows, mapped({"prompt": "q"})).rows) == (1 if same else 2)
