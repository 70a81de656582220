import copy

import pytest

from opd_trl.privileged import TEMPLATES, TeacherView, get_builder


QUESTION = [{"role": "user", "content": "2 + 2?"}]
SHOTS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
]


def upper(prompt, context):
    return f"{context.upper()} {prompt}"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_builder_keeps_the_prompt_and_adds_the_context_to_text_and_messages(name):
    build = get_builder(name)
    text = build("2 + 2?", "CONTEXT")
    assert isinstance(text, str)
    assert "2 + 2?" in text
    assert "CONTEXT" in text
    prompt = copy.deepcopy(QUESTION)
    messages = build(prompt, "CONTEXT")
    assert prompt == QUESTION  # never changed in place
    assert messages[-1]["role"] == "user"
    joined = "\n".join(message["content"] for message in messages)
    assert "2 + 2?" in joined
    assert "CONTEXT" in joined


def test_earlier_turns_stay_as_they_are():
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, *QUESTION]
    assert get_builder("hint")(history, "count")[:2] == history[:2]
    assert get_builder("system_prompt")(history, "rule") == [{"role": "system", "content": "rule"}, *history]


def test_the_system_prompt_joins_one_that_the_student_sees_too():
    prompt = [{"role": "system", "content": "Be kind."}, *QUESTION]
    built = get_builder("system_prompt")(prompt, "Be brief.")
    assert built == [{"role": "system", "content": "Be brief.\n\nBe kind."}, *QUESTION]


def test_demonstrations_go_before_the_question_and_system_messages_become_one():
    build = get_builder("few_shot")
    assert build(QUESTION, SHOTS) == [*SHOTS, *QUESTION]
    with_system = [{"role": "system", "content": "Be kind."}, *QUESTION]
    assert build(with_system, SHOTS) == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        *SHOTS[1:],
        *QUESTION,
    ]
    assert build(with_system, SHOTS[1:]) == [with_system[0], *SHOTS[1:], *QUESTION]
    assert build("2 + 2?", SHOTS) == "Be brief.\n1 + 1?\n2\n\n2 + 2?"


def test_a_template_replaces_the_wording():
    assert get_builder("hint", template="{{ context }} / {{ prompt }}")("q", "c") == "c / q"
    rule = get_builder("system_prompt", template="RULE: {{ context }}")
    assert rule(QUESTION, "c")[0] == {"role": "system", "content": "RULE: c"}


@pytest.mark.parametrize("name", ["system_prompt", "hint", "few_shot"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", " \n"])
def test_a_template_keeps_its_end_as_it_was_written(name, end):
    (*_, turn) = get_builder(name, template="{{ context }}" + end)([{"role": "user", "content": "q"}], "c")[:1]
    assert turn["content"] == "c" + end


def test_an_empty_template_is_a_template():
    assert get_builder("hint", template="")("q", "c") == ""


def test_a_context_that_looks_like_a_template_is_not_rendered():
    assert "{{ prompt }}" in get_builder("hint")("q", "{{ prompt }}")


def test_an_own_builder_is_imported_by_path():
    for path in ("tests.privileged.test_builders:upper", "tests.privileged.test_builders.upper"):
        assert get_builder(path)("q", "c") == "C q"


def test_what_cannot_be_built_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"neither one of system_prompt.*nor an importable"):
        get_builder("sytem_prompt")
    with pytest.raises(ValueError, match="nor an importable"):
        get_builder("tests.privileged.test_builders:missing")
    with pytest.raises(ValueError, match="expected a function"):
        get_builder("tests.privileged.test_builders:SHOTS")
    with pytest.raises(ValueError, match="not a valid Jinja template"):
        get_builder("hint", template="{{ context ")
    with pytest.raises(ValueError, match="no effect on your own builder"):
        get_builder("tests.privileged.test_builders:upper", template="x")
    with pytest.raises(ValueError, match="few_shot"):
        get_builder("hint")("q", SHOTS)
    with pytest.raises(ValueError, match="ends with a text user turn"):
        get_builder("hint")([{"role": "assistant", "content": "a"}], "c")


def test_a_row_without_context_is_named():
    view = TeacherView(builder="hint", column="tip")
    with pytest.raises(ValueError, match="'tip' is empty in row 7"):
        view.prompts([{"prompt": "q", "tip": "  "}], ["row 7"])
    with pytest.raises(ValueError, match=r"must hold text or a list of messages.*int in row 7"):
        view.prompts([{"prompt": "q", "tip": 3}], ["row 7"])


def test_a_shared_context_serves_all_rows():
    view = TeacherView(builder="hint", column="tip", text="c")
    assert len(set(view.prompts([{"prompt": "q"}, {"prompt": "q"}], ["0", "1"]))) == 1


def test_shared_contexts_are_read_and_checked(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        TeacherView(builder="hint", column="tip", file=str(tmp_path / "none.txt"))
    for name, text, match in [("a.txt", " \n", "is empty"), ("b.json", '[{"role": "user"}]', "list of messages")]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=match):
            TeacherView(builder="hint", column="tip", file=str(tmp_path / name))


def test_a_file_that_is_no_json_or_no_utf8_is_named(tmp_path):
    for name, content in [("a.json", b"[{"), ("b.txt", b"\xff\xfe rule")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"privileged_context_file='.*{name}' cannot be read"):
            TeacherView(builder="few_shot", column="tip", file=str(tmp_path / name))


PICTURE = {"type": "image", "image": object()}


def parts(*contents):
    """A user turn of pictures and texts."""
    return {"role": "user", "content": [x if isinstance(x, dict) else {"type": "text", "text": x} for x in contents]}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_builder_keeps_the_images_of_a_prompt(name):
    built = get_builder(name)([parts(PICTURE, "2 + 2?")], "CONTEXT")
    assert [part for turn in built for part in turn["content"] if part == PICTURE] == [PICTURE]
    text = get_builder(name)([{"role": "user", "content": "2 + 2?"}], "CONTEXT")[-1]["content"]
    assert built[-1] == parts(PICTURE, text)  # the words are those of a prompt without an image


def test_the_wording_goes_around_the_last_text_and_merges_system_turns():
    hint = get_builder("hint", template="{{ prompt }} / {{ context }}")
    assert hint([parts("first", PICTURE, "a", "b")], "c") == [parts("first", PICTURE, "ab / c")]
    assert hint([parts("a", PICTURE)], "c") == [parts("a / c", PICTURE)]
    assert hint([parts(PICTURE)], "c") == [parts(PICTURE, " / c")]
    system = {**parts("Be kind."), "role": "system"}
    built = get_builder("system_prompt")([system, parts(PICTURE, "q")], "Be brief.")
    assert built == [{**parts("Be brief.\n\nBe kind."), "role": "system"}, parts(PICTURE, "q")]
