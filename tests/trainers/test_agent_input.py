"""Tools and environments that cannot work are refused with the remedy."""

import pytest

from opd_trl import OPSDConfig
from opd_trl.data.row_checks import RowError
from opd_trl.data.toy_calculator import CHAT_TEMPLATE, Calculator, build_tokenizer
from opd_trl.trainers.config.config_checks import say_once
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, opsd_trainer, settings
from tests.trainers.calls import FULL, HOW, agent, rows, save_caller


@pytest.fixture(scope="module")
def caller(tmp_path_factory) -> str:
    return save_caller(tmp_path_factory.mktemp("caller"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tool_depth_start": 1}, "tool_depth_start=1 with tool_depth_steps=None.*Set both"),
        ({"tool_depth_steps": 6}, "tool_depth_start=None with tool_depth_steps=6.*Set both"),
        ({"tool_depth_start": 0, "tool_depth_steps": 6}, "tool_depth_start must be >= 1, got 0"),
        (
            {"tool_depth_start": 4, "tool_depth_steps": 6, "max_tool_calling_iterations": 2},
            "tool_depth_start=4 is above the most turns, max_tool_calling_iterations=2 and one",
        ),
    ],
)
def test_half_a_curriculum_is_refused(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        OPSDConfig(**settings(tmp_path, **options))


def test_a_curriculum_without_tools_says_that_it_does_nothing(tmp_path, student_path, caplog):
    say_once.cache_clear()
    opsd_trainer(tmp_path, student_path, tool_depth_start=1, tool_depth_steps=2)
    assert "tool_depth_start has no effect here. It needs tools or an environment_factory" in caplog.text


NO_TOOLS = tiny.CHAT_TEMPLATE
REWRITING = CHAT_TEMPLATE.replace("<|{{ m.role }}|>", "<|{{ m.role }}|>{{ loop.last and 'last' or '' }}")
BAD_TEMPLATES = {
    "no part for calls": (NO_TOOLS, True, "does not render calls of tools and their answers.*Qwen3.*role tool"),
    "calls that nothing reads": (CHAT_TEMPLATE, False, "nothing says how to read a call.*response_template"),
    "turns that change": (REWRITING, True, "writes a turn in another way once a tool has answered it.*those behind"),
}


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_a_template_that_cannot_take_tools_is_refused_before_anything_is_written(tmp_path, caller, name):
    template, reads_calls, match = BAD_TEMPLATES[name]
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    if not reads_calls:
        tokenizer.response_template = None
    for how in HOW.values():
        with pytest.raises(RowError, match=match):
            agent(tmp_path, caller, how | {"processing_class": tokenizer})
    assert not (tmp_path / "out").exists()


def test_an_observation_in_parts_that_the_template_prints_as_code_is_refused(tmp_path, caller):
    class InParts(Calculator):
        def reset(self, keys, **row):
            super().reset(keys)
            return [{"type": "text", "text": " go"}]

    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ m.content + '<|end|>' }}", "{{ m.content }}<|end|>")
    how = {"environment_factory": InParts, "processing_class": tokenizer}
    with pytest.raises(RowError, match=r"^row 0 of this batch .* prints the list of parts of turn 0 "):
        fixed_batch(agent(tmp_path, caller, how))


def test_an_image_that_a_tool_answers_with_is_refused(tmp_path, caller):
    class Camera(Calculator):
        def press(self, key: str, number: int) -> list:
            """Press a key.

            Args:
                key: The key.
                number: The number.
            """
            return [{"type": "image", "image": None}]

    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ m.content + '<|end|>' }}", "{{ m.content }}<|end|>")
    how = {"environment_factory": Camera, "processing_class": tokenizer}
    with pytest.raises(ValueError, match="a tool has answered with an image: the teacher reads the pixels of prompts"):
        fixed_batch(agent(tmp_path, caller, how))


def test_a_teacher_of_text_and_tools_are_refused_together(tmp_path, caller, teacher_path):
    for how in HOW.values():
        with pytest.raises(ValueError, match=r"teacher_vocabulary='text' with tools.*Choose a teacher"):
            opd_trainer(
                tmp_path, caller, teacher_path, dataset=rows(), trainer_options=how, teacher_vocabulary="text", **FULL
            )
