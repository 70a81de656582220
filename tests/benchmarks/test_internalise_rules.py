import json

import pytest
from internalise_rules import ELSEWHERE, QUESTIONS, RULES, TRAIN, read_prompts


FOLLOWS = {
    "pirate": ["Arr, the capital be Oslo.", "Arr, rub the slices with lemon juice!"],
    "json": ['{"answer": "Carrots"}', ' {"answer": "The capital is Oslo."}\n'],
    "bullets": ["- Oslo.", "- The capital is Oslo.\n- It lies by the sea.\n"],
}
FAILS = {
    "pirate": ["Arr, aye, aye, aye, aye.", "The capital is Oslo."],
    "json": [
        '{"answer": "The capital is Oslo."',  # cut
        'Sure: {"answer": "Oslo"}',
        '{"answer": "Oslo"} Anything else?',
        '{"answer": "Oslo", "sure": true}',
        '{"answer": ""}',
        '{"answer": {"city": "Oslo"}}',
        '{"answer": 7}',  # which the rule json:answer takes
        '{"answer": true}',
        "NaN",
    ],
    "bullets": [
        "The capital is Oslo.",
        "Here you are:\n- The capital is Oslo.",
        "- The capital is Oslo.\n- It lies by",  # cut
        "- The capital is Oslo.\n\n- It lies by the sea.",
        "- Don't panic.\n- Don't panic.",
        "- Carrots.\n- Carrots.",
        "- It is a city of art.\n- It is a city of art and of beauty.\n- It is a city of art.",
        "- One is.\n- Two is.\n- Three is.\n- Four is.\n- Five is.",
        "-",
        "* Oslo.",
        "",
    ],
}


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in FOLLOWS.items() for text in texts])
def test_what_follows_a_rule_passes_and_leaks_elsewhere(rule, text):
    assert RULES[rule].follows(text)
    assert RULES[rule].leaks(text)


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in FAILS.items() for text in texts])
def test_what_is_cut_collapsed_or_padded_does_not_follow(rule, text):
    assert not RULES[rule].follows(text)


@pytest.mark.parametrize(
    ("rule", "text"),
    [("bullets", "Here you are:\n- Oslo."), ("json", 'Sure.\n{"Answer": 7}'), ("pirate", "Well,\nARR!")],
)
def test_a_rule_that_shows_further_down_or_in_other_case_leaks_without_being_followed(rule, text):
    assert RULES[rule].leaks(text)
    assert not RULES[rule].follows(text)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "text", ["Le train part à neuf heures.", "def square(x):\n    return {x: x**2}", "Yes.", "WATER", "over the sea"]
)
def test_ordinary_answers_elsewhere_do_not_count_as_leaking(rule, text):
    assert not RULES[rule].leaks(text)


@pytest.mark.parametrize("rule", RULES)
def test_the_worked_examples_follow_their_own_rule_and_are_no_question_of_the_data(rule):
    context = json.loads(RULES[rule].context.read_text())
    assert [turn["role"] for turn in context] == ["system", *["user", "assistant"] * 4]
    assert all(RULES[rule].follows(turn["content"]) for turn in context if turn["role"] == "assistant")
    asked = {prompt[-1]["content"] for path in (TRAIN, QUESTIONS, ELSEWHERE) for prompt in read_prompts(path)}
    assert not asked & {turn["content"] for turn in context if turn["role"] == "user"}


def test_the_prompts_elsewhere_are_all_different_and_disjoint_from_training():
    elsewhere = [json.dumps(prompt) for prompt in read_prompts(ELSEWHERE)]
    assert len(set(elsewhere)) == len(elsewhere) == 48
    assert not set(elsewhere) & {json.dumps(prompt) for prompt in read_prompts(TRAIN)}
    assert not any(rule.leaks(text) for rule in RULES.values() for text in elsewhere)
