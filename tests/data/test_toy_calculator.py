"""The toy task with tools: solvable by its manual alone, with a template that TRL can train and call tools through."""

import json

from transformers import AutoTokenizer
from transformers.utils import get_json_schema
from trl.chat_template_utils import get_training_chat_template, is_chat_template_prefix_preserving, parse_response

from opd_trl.cli.toy import main
from opd_trl.data.toy_calculator import (
    LEARNED,
    TOOL,
    Calculator,
    answer_of,
    build_tokenizer,
    calculator,
    manual,
    question,
    trace,
)

from .conftest import read


def test_following_a_manual_solves_every_problem_and_no_trace_shows_the_one_to_learn():
    parts = calculator(0)
    for row in parts["opd"] + parts["test"]:
        device = Calculator()
        device.reset(**row)
        keys = dict(line.split(":") for line in row["privileged_context"].split(" "))
        number, *names = row["prompt"][-1]["content"].split(" ")
        for name in names:
            number = device.press(keys[name], int(number))
        assert number == row["answer"]
    traces = [row["messages"] for row in parts["sft"]]
    shown = [turns[0]["content"] for turns in traces if turns[0]["role"] == "system"]
    assert 0.75 < len(shown) / len(traces) < 0.85
    assert not [text for text in shown if set(text.split(" ")) == set(manual(LEARNED).split(" "))]


def test_the_parts_share_no_problem_and_a_seed_changes_the_traces():
    parts = calculator(0)
    asked = [{turn["content"] for row in parts["sft"] for turn in row["messages"] if turn["role"] == "user"}]
    asked += [{row["prompt"][0]["content"] for row in parts[part]} for part in ("opd", "test")]
    assert len(set().union(*asked)) == sum(map(len, asked))
    assert len(asked[1]) > 250
    assert calculator(1)["sft"] != parts["sft"]
    assert {row["prompt"][0]["content"] for row in calculator(1)["test"]} == asked[2]


def test_the_template_takes_tools_and_what_it_writes_is_read_back_as_calls():
    tokenizer = build_tokenizer()
    assert get_json_schema(Calculator().press) == TOOL
    assert is_chat_template_prefix_preserving(tokenizer)
    assert get_training_chat_template(tokenizer) is None
    turns = [*question(3, ("twin", "back")), *trace(3, ("twin", "back"), LEARNED)]
    for end in (2, 4, 6):
        before = tokenizer.apply_chat_template(turns[: end - 1], tools=[TOOL], add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(turns[:end], tools=[TOOL])["input_ids"]
        assert parse_response(tokenizer, whole[len(before) :], prefix=before) == turns[end - 1]
    assert answer_of(3, ("twin", "back")) == turns[-1]["content"] == "5"


def test_the_command_writes_rows_and_a_tokenizer_that_reads_calls(here):
    assert main(["--task", "calculator", "--output", "toy"]) == 0
    assert read(here / "toy" / "sft.jsonl")[0].keys() == {"messages", "tools"}
    row = read(here / "toy" / "opd.jsonl")[0]
    assert row.keys() == {"prompt", "keys", "answer", "privileged_context"}
    assert json.loads(row["keys"]) == LEARNED
    assert AutoTokenizer.from_pretrained(here / "toy" / "model").response_template is not None
