import pytest

from opd_trl.evaluation import parse_rule
from opd_trl.evaluation.named_rules import RULES


COLLAPSED = ["", "   ", "...", "Arr, aye, aye, aye, aye, aye.", "no no no no no no no", "- a\n- a\n- a", "{}"]

CASES = {
    "one_sentence:Arr,": (["Arr, the capital be Oslo."], ["The capital is Oslo.", "Arr, one. Two."]),
    "json": (['{"a": 1}', '{"a": [1], "b": "yes"}'], ["[1]", '"a"', '{"a": ""}', '{"a": 1} so', '{"a": null}']),
    "json:answer": (
        ['{"answer": "Oslo"}'],
        ['{"answer": "Oslo", "b": 1}', '{"b": 1}', '{"answer": "aye aye aye aye"}'],
    ),
    "json:a, b": (['{"b": 1, "a": 2}'], ['{"a": 1}']),
    "bullets": (["- red\n- green", "* red\n\n* green\n"], ["- red", "red\n- green", "-red\n-green"]),
    "bullets:3": (["- a b\n- c d\n- e f"], ["- a b\n- c d"]),
    "numbered": (["1. red\n2. green", "1) red\n2) green"], ["2. red\n3. green", "1. red\n1. green", "1. b\n2. b"]),
    "numbered:2": (["1. red\n2. green"], ["1. red\n2. green\n3. blue"]),
    "starts_with:Arr": (["Arr, it be so."], ["It be so, Arr", "Arr arr arr", "Arr"]),
    "starts_with:Sure: ": (["Sure: it is Oslo."], ["Sure: "]),
    "ends_with:Over.": (["It is Oslo. Over."], ["Over.", "Over. It is Oslo. Over.", "It is Oslo."]),
    "max_words:3": (["It is Oslo."], ["The capital is Oslo."]),
    "min_words:3": (["It is Oslo."], ["Oslo it."]),
    "uppercase": (["IT IS 7."], ["It IS 7.", "7"]),
    "lowercase": (["it is 7."], ["It is 7.", "7"]),
    "language:de": (
        ["Die Hauptstadt von Norwegen ist Oslo, und sie liegt an einem langen Fjord."],
        ["The capital of Norway is Oslo, and it lies at the end of a long fjord.", "1234 5678"],
    ),
    "refusal": (
        [
            "I'm sorry, but I can't help with that.",
            "I cannot assist with this request.",
            "I\u2019m unable to do that.",
        ],
        ["Sure, here is how.", "The word sorry has five letters."],
    ),
    "no_refusal": (["Sure, here is how."], ["I can't help with that.", "I won't do it."]),
    "regex:(?i)\\barr\\b": (["Well, ARR!"], ["Harry"]),
}


def test_every_rule_has_cases():
    assert {text.partition(":")[0] for text in CASES} == RULES.keys()


@pytest.mark.parametrize("text", CASES)
def test_a_rule_tells_right_from_wrong(text):
    rule, (right, wrong) = parse_rule(text), CASES[text]
    assert [rule(answer) for answer in right] == [True] * len(right)
    assert [rule(answer) for answer in wrong] == [False] * len(wrong)


@pytest.mark.parametrize("text", [text for text in CASES if not text.startswith("regex")])
@pytest.mark.parametrize("answer", COLLAPSED)
def test_collapsed_and_empty_text_follows_no_rule(text, answer):
    assert not parse_rule(text)(answer)


@pytest.mark.parametrize("text", CASES)
@pytest.mark.parametrize("answer", ["{" * 300_000, "a" * 300_000, "a b " * 99_999, "1. \n" * 99_999, "- \n" * 99_999])
def test_long_hostile_answers_are_judged_in_one_pass(text, answer):
    assert parse_rule(text)(answer) in (True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_word:3", r"'max_word:3' names no rule: did you mean max_words\?"),
        ("pirate", r"names no rule: The rules are one_sentence:START, "),
        ("max_words", r"a whole number above 0 is needed.* Write it max_words:N"),
        ("max_words:many", r"got 'many'"),
        ("max_words:0", r"got '0'"),
        ("uppercase:x", r"takes nothing behind a colon, got 'x'"),
        ("starts_with:", r"a text is needed"),
        ("json:a,,b", r"separated by commas"),
        ("regex:(", r"not a regular expression"),
        ("language:klingon", r"language 'klingon' is not known. There are af, "),
    ],
)
def test_a_rule_that_is_none_is_refused_with_what_there_is(text, message):
    with pytest.raises(ValueError, match=message):
        parse_rule(text)


def test_the_language_of_a_text_does_not_change_from_call_to_call():
    rule = parse_rule("language:en")
    assert len({rule("Oslo to the fjord") for _ in range(20)}) == 1
