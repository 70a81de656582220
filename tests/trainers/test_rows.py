"""Rows that cannot be trained on are refused before a model is built, with the row's number and what to do."""

import time

import pytest
from datasets import Dataset, IterableDataset
from pyarrow import ArrowException
from tokenizers.processors import TemplateProcessing

from opd_trl import OPDConfig, OPSDConfig
from opd_trl.data import toy_calculator
from opd_trl.data.row_checks import RowError
from opd_trl.models.forward import window_of
from opd_trl.preflight.templates import check_lengths
from opd_trl.trainers.input_checks import check_data
from opd_trl.trainers.teacher_prompts import row_checks
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, settings


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
TEXTS_ALONE = TURNS.replace("{{ m.content }}", "{{ m.content if m.content is string else '' }}")
FIRST_PART = TURNS.replace("{{ m.content }}", "{{ m.content if m.content is string else m.content[0].text }}")
AS_JSON = TURNS.replace("m.content", "m.content | tojson")
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
)
SILENT_ON_SYSTEM = TURNS.replace("%}<", "%}{% if m.role != 'system' %}<", 1).replace("\n{%", "{% endif %}\n{%", 1)
LAST_TURN_ALONE = "<user>{{ messages[-1].content }}<assistant>"
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}" + TURNS
)
CONCATENATING = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}<assistant>"
TWO_BOS = "{{ bos_token }}{{ bos_token }}" + TURNS

USER = {"role": "user", "content": "1 + 1?"}
ASSISTANT = {"role": "assistant", "content": "2"}


def said(content, role="user") -> dict:
    return {"role": role, "content": content}


def parts(*texts: str, kind: str = "text") -> list:
    return [{"type": kind, kind: text} for text in texts]


def build_tokenizer(template=TURNS, *, around: str | None = None, **tokens):
    """The tokenizer of the tests with another template, tokens of other roles, and what stands around a text."""
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = template
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    if around is not None:
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (tiny.START, tiny.END)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=ids)
    return tokenizer


def look(tmp_path, train, evaluation=None, *, tokenizer=None, options=None, required=False, **fields):
    """What a trainer does with its rows before it builds a model."""
    config = OPSDConfig if required else OPDConfig
    args = config(**settings(tmp_path, **fields))
    checks = row_checks(args, tokenizer or build_tokenizer(), options or {})
    check_data(checks, args, train, evaluation, required=required)
    return checks


def calls_tools():
    """A tokenizer whose chat template renders calls of tools."""
    return toy_calculator.build_tokenizer()


def stream(rows) -> IterableDataset:
    """Rows that come one by one, as Python holds them."""

    def generate():
        yield from rows

    return IterableDataset.from_generator(generate)


def rows_of(prompts, **columns) -> list[dict]:
    return [{"prompt": x} | {name: values[i] for name, values in columns.items()} for i, x in enumerate(prompts)]


TEXT, CHAT = "1 + 1?", [USER]
#: Rows among good ones; those that Arrow can hold beside these are tried as a data set too.
ODD = {
    "null": (TEXT, None, "empty prompt. Fill it, or filter the row out."),
    "no text": (TEXT, "", "empty prompt"),
    "blanks": (TEXT, " \n", "empty prompt"),
    "half a pair": (TEXT, "a\ud83d", r"half a surrogate pair, \\ud83d at 1\. Repair"),
    "a number": (TEXT, 7, r"the prompt is of type int. Expected a text, or messages"),
    "messages among texts": (
        TEXT,
        CHAT,
        "one prompt is a text, and another one is made of messages. Give all",
    ),
    "null among messages": (CHAT, None, "empty prompt"),
    "no messages": (CHAT, [], "empty prompt"),
    "token ids": (CHAT, [1, 2], "turn 0 of the prompt is of type int"),
    "content null": (CHAT, [said(None)], r"turn 0 \(user\) of the prompt has no content. Fill it"),
    "system null": (CHAT, [said(None, "system"), USER], r"turn 0 \(system\) of the prompt has no content"),
    "assistant null": (CHAT, [USER, said(None, "assistant"), USER], r"turn 1 \(assistant\).*no content"),
    "a number as content": (CHAT, [said(5)], r"the content of turn 0 \(user\) of the prompt is of type int"),
    "a part without its list": (
        CHAT,
        [said({"type": "text", "text": "a"})],
        "is of type dict. Expected a text, or pa",
    ),
    "texts in place of parts": (CHAT, [said(["a"])], "a list with something else than parts"),
    "a part without its text": (CHAT, [said([{"type": "text", "text": None}])], "a list with something else than"),
    "blank parts": (CHAT, [said(parts(" "))], r"turn 0 \(user\) of the prompt is empty"),
    "blank content": (CHAT, [USER, ASSISTANT, said(" ")], r"turn 2 \(user\) of the prompt is empty"),
    "names of ShareGPT": (
        CHAT,
        [{"from": "human", "value": "a"}],
        r"turn 0 of the prompt has no role.*'from', 'value'",
    ),
    "half a pair in a turn": (CHAT, [said("\udc00")], "half a surrogate pair"),
    "a last, assistant turn": (CHAT, [USER, ASSISTANT], r"ends with an assistant turn.*all turns but the last"),
    "ShareGPT's roles": (
        CHAT,
        [said("a", "human")],
        r"the role 'human', which the chat template does not know.*Rename",
    ),
    "an image for a tokenizer": (CHAT, [said(parts("a", kind="image"))], r"turn 0 \(user\) of the prompt holds image"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_row_is_named_in_a_stream_in_a_data_set_and_in_an_evaluation_set(tmp_path, name):
    good, odd, match = ODD[name]
    rows = [good, good, odd, good]
    fits = Dataset.from_dict({"prompt": [good] * 4})
    with pytest.raises(RowError, match=f"^row 2 of the train set: .*{match}"):
        look(tmp_path, stream(rows_of(rows)))
    with pytest.raises(RowError, match=f"^row 2 of the eval set: .*{match}"):
        look(tmp_path, fits, stream(rows_of(rows)))
    try:
        dataset = Dataset.from_dict({"prompt": rows})
    except (ValueError, TypeError, UnicodeEncodeError, ArrowException):
        assert name not in ("null", "no text", "no messages", "content null", "a last, assistant turn")
        return
    with pytest.raises(RowError, match=r"^row 2 of the train set: "):
        look(tmp_path, dataset)


CALL = said(None, "assistant") | {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}


@pytest.mark.parametrize(
    "prompt",
    [
        CHAT,
        [said("", "system"), USER],
        [USER, ASSISTANT, USER],
        [said("Tools: f", "system"), USER, CALL, said("", "tool")],
        [said("Be brief.", "developer"), USER],
        [USER, USER],
    ],
)
def test_sound_prompts_pass(tmp_path, prompt):
    assert len(look(tmp_path, stream(rows_of([prompt] * 4))).sets[0].sizes) == 4


SYSTEM_CHAT = [said("Be brief.", "system"), USER]
#: A prompt, the tokenizer that spoils it, and what is said.
SPOILT = {
    "parts that become nothing": (
        [said(parts("a"))],
        {"template": TEXTS_ALONE},
        "leaves out the text of turn 0 .user.*a list of parts.*Write the content as one text",
    ),
    "parts printed as Python": (
        [said(parts("a"))],
        {},
        "prints the list of parts of turn 0 .user. of the prompt as code",
    ),
    "parts printed as JSON": ([said(parts("a"))], {"template": AS_JSON}, "prints the list of parts"),
    "all parts but the first lost": (
        [said(parts("a", "b"))],
        {"template": FIRST_PART},
        "leaves out the text of turn 0",
    ),
    "parts that break the template": (
        [said(parts("a"))],
        {"template": CONCATENATING},
        "the chat template refuses the prompt, of the roles user: ",
    ),
    "a system turn refused": (
        SYSTEM_CHAT,
        {"template": NO_SYSTEM},
        "refuses the prompt, of the roles system, user: System role not supported. Change these turns",
    ),
    "a system turn left out": (
        SYSTEM_CHAT,
        {"template": SILENT_ON_SYSTEM},
        r"leaves out the text of turn 0 \(system\)",
    ),
    "earlier turns left out": ([USER, ASSISTANT, USER], {"template": LAST_TURN_ALONE}, r"leaves out.*turn 0 \(user\)"),
    "two turns of one role": (
        [USER, USER],
        {"template": ALTERNATING},
        "of the roles user, user: Roles must alternate",
    ),
    "two tokens that begin": (
        CHAT,
        {"template": TWO_BOS, "bos_token": tiny.START},
        "begins the prompt with two <.im_st",
    ),
    "a rendered prompt in a turn": (
        [said(f"{tiny.START}user\nHi")],
        {"bos_token": tiny.START},
        "the model would read two",
    ),
    "a rendered prompt": (
        f"{tiny.START}user",
        {"bos_token": tiny.START, "around": f"{tiny.START} $A"},
        "would read two",
    ),
    "an end behind the prompt": (
        TEXT,
        {"around": f"$A {tiny.END}"},
        r"puts <.im_end.> behind the prompt.*add_eos_token",
    ),
    "no chat template": (CHAT, {"template": None}, "made of messages, and the tokenizer has no chat template"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_template_that_spoils_a_shape_of_prompts_is_told_with_the_first_row_of_it(tmp_path, name):
    prompt, tokenizer, match = SPOILT[name]
    good = TEXT if isinstance(prompt, str) else CHAT
    number = 0 if {"two tokens that begin", "an end behind the prompt", "no chat template"} & {name} else 2
    with pytest.raises(RowError, match=f"^row {number} of the train set: .*{match}"):
        look(tmp_path, stream(rows_of([good, good, prompt, good])), tokenizer=build_tokenizer(**tokenizer))


def test_a_token_that_begins_a_text_is_welcome_where_the_tokenizer_adds_none(tmp_path):
    rendered = Dataset.from_dict({"prompt": [f"{tiny.START}user\nHi"] * 4})
    checks = look(tmp_path, rendered, tokenizer=build_tokenizer(bos_token=tiny.START))
    assert len(checks.sets[0].sizes) == 4


def test_the_teachers_prompt_is_rendered_too(tmp_path):
    rows = Dataset.from_dict({"prompt": [CHAT] * 4})
    context = {"required": True, "privileged_context": "Be brief."}
    with pytest.raises(
        RowError, match=r"^row 0 of.*refuses the teacher's prompt, of the roles system, user: .*_builder: hint"
    ):
        look(tmp_path, rows, tokenizer=build_tokenizer(NO_SYSTEM), **context)
    look(tmp_path, rows, tokenizer=build_tokenizer(NO_SYSTEM), privileged_builder="hint", **context)
    with pytest.raises(RowError, match=r"leaves out the text of turn 0 \(system\) of the teacher's prompt"):
        look(tmp_path, rows, tokenizer=build_tokenizer(SILENT_ON_SYSTEM), **context)
    tool = [said("f", "system"), USER, ASSISTANT | {"tool_calls": [{"name": "f"}]}, said("2", "tool")]
    with pytest.raises(RowError, match=r"^row 1 of the train set: .*ends with a text user turn"):
        look(tmp_path, stream(rows_of([CHAT, tool, CHAT, CHAT])), privileged_builder="hint", **context)
    with pytest.raises(ValueError, match="'privileged_context' is empty in row 0 of the eval set"):
        look(tmp_path, tiny.questions(4, privileged_context="a"), tiny.questions(4))


@pytest.mark.parametrize(
    ("count", "fields", "needed"),
    [
        (3, {"max_steps": 5}, 4),
        (3, {"max_steps": -1, "num_train_epochs": 1}, 4),
        (7, {"gradient_accumulation_steps": 2}, 8),
        (7, {"steps_per_generation": 2}, 8),
        (1, {"num_generations": 2, "loss_top_k": 5}, 2),
    ],
)
def test_fewer_rows_than_a_batch_takes_are_refused_with_the_numbers(tmp_path, count, fields, needed):
    for make in (tiny.questions, lambda n: stream(list(tiny.questions(n)))):
        with pytest.raises(
            RowError, match=rf"too few rows, {count}: one batch takes {needed} \(per_device.*nothing would"
        ):
            look(tmp_path, make(count), **fields)
        look(tmp_path, make(needed), make(1), **fields)


def test_schemas_in_a_column_that_nothing_reads_are_refused(tmp_path):
    def weather(city: str) -> str:
        """The weather.

        Args:
            city: where.
        """
        return city

    schemas = [None, [], [{"type": "function", "function": {"name": "f", "parameters": {}}}], None]
    with pytest.raises(RowError, match=r"^row 2 of the train set: the column `tools` is not read.*or drop the column"):
        look(tmp_path, stream(rows_of([CHAT] * 4, tools=schemas)))
    look(tmp_path, stream(rows_of([CHAT] * 4, tools=[None] * 4)))
    look(tmp_path, stream(rows_of([CHAT] * 4, tools=schemas)), options={"tools": [weather]}, tokenizer=calls_tools())


def test_an_answer_of_a_tool_in_a_prompt_that_tells_of_none_is_refused(tmp_path):
    def f() -> str:
        """A tool."""
        return ""

    rows = rows_of([CHAT, CHAT, [USER, CALL, said("4", "tool")], CHAT])
    with pytest.raises(RowError, match=r"^row 2 of the train set: turn 2 of the prompt is an answer of a tool"):
        look(tmp_path, stream(rows))
    for options in ({"tools": [f]}, {"environment_factory": object}):
        look(tmp_path, stream(rows), options=options, tokenizer=calls_tools())
        with pytest.raises(RowError, match=r"^row 0 .*is a text, and a rollout with tools.*messages such as"):
            look(tmp_path, stream(rows_of([TEXT] * 4)), options=options, tokenizer=calls_tools())


def test_a_row_without_a_prompt_is_filled_by_an_environment_and_brings_its_context(tmp_path):
    rows = [{"privileged_context": text} for text in ("a", "b", "", "c")]
    with pytest.raises(RowError, match="'privileged_context' is empty in row 2 of the train set"):
        look(tmp_path, stream(rows), required=True, options={"environment_factory": object}, tokenizer=calls_tools())


def test_rows_that_an_environment_or_images_fill_may_be_blank(tmp_path):
    look(tmp_path, stream(rows_of([[said("")]] * 4)), options={"environment_factory": object}, tokenizer=calls_tools())
    look(tmp_path, stream(rows_of([[said("")]] * 4, image=["a.png"] * 4)))


def test_twenty_thousand_rows_take_less_than_two_seconds(tmp_path):
    rows = Dataset.from_dict({"prompt": [[said(f"{i} and {i} and {i}?")] for i in range(20_000)]})
    start = time.process_time()
    checks = look(tmp_path, rows)
    assert time.process_time() - start < 2.0
    assert len(checks.sets[0].sizes) == 20_000


def test_the_columns_of_the_users_own_format_are_read_as_they_are(tmp_path):
    rows = Dataset.from_dict({"prompt": [CHAT] * 4, "number": [1.0] * 4})
    look(tmp_path, rows.with_format("torch"))
    made = rows.with_transform(lambda batch: {"prompt": [None] * len(batch["prompt"])})
    with pytest.raises(RowError, match="row 0 of the train set: empty prompt"):
        look(tmp_path, made)


# What fits the windows is known once the models are there


@pytest.mark.parametrize(
    ("windows", "match"),
    [
        (
            (120, 512),
            "the prompt has 10. tokens, at most 100 fit .the student's window of 120 tokens less max_compl.* 20",
        ),
        ((512, 120), "the prompt has 10. tokens, at most 100 fit .the teacher's window of 120 tokens"),
    ],
)
def test_a_prompt_without_room_for_its_completion_is_named(tmp_path, windows, match):
    student, teacher = (tiny.build_model(seed=i, max_position_embeddings=x) for i, x in enumerate(windows))
    options = {"processing_class": tiny.build_tokenizer()}
    rows = [[said("a" * n)] for n in (5, 60, 90, 5)]  # the template adds 19 tokens
    trainer = opd_trainer(
        tmp_path,
        student,
        teacher,
        dataset=Dataset.from_dict({"prompt": rows[:2] * 2}),
        trainer_options=options,
        max_completion_length=20,
    )
    fixed_batch(trainer)
    ids = trainer.tokenize(rows)
    finding = check_lengths(trainer, ids, ids)
    assert (finding.verdict, "at most 100" in finding.threshold) == ("stop", True)
    assert check_lengths(trainer, ids[:2], ids[:2]).verdict == "ok"
    with pytest.raises(RowError, match=f"^row 2 of this batch .prompt.*{match}"):
        fixed_batch(trainer, [{"prompt": row} for row in rows])
    for dataset, evaluation in ((rows, None), (rows[:2] * 2, rows)):
        name = "train" if evaluation is None else "eval"
        with pytest.raises(RowError, match=f"^row 2 of the {name} set: {match}"):
            opd_trainer(
                tmp_path,
                student,
                teacher,
                dataset=Dataset.from_dict({"prompt": dataset}),
                trainer_options=options
                | {"eval_dataset": None if evaluation is None else Dataset.from_dict({"prompt": evaluation})},
                max_completion_length=20,
            )


def test_rows_of_a_stream_are_checked_as_they_come(tmp_path, student_path, teacher_path):
    rows = [*rows_of([CHAT] * 4), *rows_of([CHAT, [USER, ASSISTANT], CHAT, CHAT])]
    trainer = opd_trainer(
        tmp_path, student_path, teacher_path, dataset=stream(rows), max_steps=2, shuffle_dataset=False
    )
    with pytest.raises(RowError, match=r"^row 1 of this batch \(prompt .*ends with an assistant turn"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_positions_that_a_model_stretches_count():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 10000.0}
    assert window_of(tiny.build_model(rope_parameters=yarn).config) == 2048
