"""Without a GPU: the device is chosen, the size of a step and the time to go are said, and short runs log."""

import logging

import pytest
import torch

from opd_trl import OPDConfig, OPDTrainer, OPSDConfig
from opd_trl.trainers.config import config_checks
from tests import tiny
from tests.trainers.build import settings


on_a_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
LINE = "No GPU is seen: use_cpu: true, bf16: false. What you set by hand wins."


@pytest.fixture(autouse=True)
def as_at_first():
    """Each test is the first to say it."""
    config_checks.say_once.cache_clear()


@on_a_cpu
@pytest.mark.parametrize("config_class", [OPDConfig, OPSDConfig])
def test_without_a_gpu_the_cpu_is_taken_and_one_line_says_so(config_class, caplog):
    with caplog.at_level(logging.WARNING):
        config = config_class(output_dir="out")
        config_class(output_dir="out")
    assert (config.use_cpu, config.bf16) == (True, False)
    assert [record.message for record in caplog.records if record.name == config_checks.__name__] == [LINE]


@on_a_cpu
def test_what_is_set_by_hand_stays(caplog):
    assert OPDConfig(output_dir="out", bf16=True).bf16 is True
    assert OPDConfig(output_dir="out", use_cpu=True).bf16 is True  # TRL's default
    with pytest.raises(ValueError, match="bf16"):
        OPDConfig(output_dir="out", use_cpu=False)


def test_with_an_accelerator_nothing_is_chosen(monkeypatch, caplog):
    config = OPDConfig(output_dir="out", use_cpu=True)
    config.use_cpu, config.bf16 = False, None
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    config_checks.choose_device(config, frozenset())
    assert (config.use_cpu, config.bf16) == (False, None)
    assert caplog.text == ""


@on_a_cpu
@pytest.mark.parametrize(("capability", "has_bfloat16", "dtype", "is_told"), [
    ("AVX2", False, "bfloat16", True), ("AVX2", False, "float32", False),
    ("AVX512", False, "bfloat16", True), ("AVX512", True, "bfloat16", False),
])  # fmt: skip
def test_bfloat16_on_a_cpu_that_cannot_is_warned_of(
    tmp_path, student_path, teacher_path, monkeypatch, caplog, capability, has_bfloat16, dtype, is_told
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    short_run(tmp_path, student_path, teacher_path, model_init_kwargs={"dtype": dtype}).train()
    assert ("This CPU computes bfloat16" in caplog.text) == is_told


def lines_of(trainer) -> list[int]:
    trainer.train()
    return [line["step"] for line in trainer.state.log_history if "loss" in line]


def short_run(tmp_path, student_path, teacher_path, **options):
    fields = settings(tmp_path, max_steps=5, max_completion_length=2, **options)
    if "logging_steps" not in options:
        del fields["logging_steps"]
    args = OPDConfig(**fields)
    return OPDTrainer(student_path, teacher_model=teacher_path, args=args, train_dataset=tiny.questions())


def test_a_run_says_its_size_and_its_time_and_logs_each_step(tmp_path, student_path, teacher_path, capsys):
    trainer = short_run(tmp_path, student_path, teacher_path, gradient_accumulation_steps=2, disable_tqdm=False)
    assert trainer.args.logging_steps == 10
    assert lines_of(trainer) == [1, 2, 3, 4, 5]
    out = capsys.readouterr().out
    assert "A step: 8 completions of up to 2 tokens. Steps to go: 5." in out
    assert "A step takes " in out
    assert " to go." in out.partition("A step takes ")[2]


def test_who_wants_no_bars_gets_no_lines_and_a_given_logging_steps_is_cut_to_the_run(
    tmp_path, student_path, teacher_path, capsys
):
    assert lines_of(short_run(tmp_path, student_path, teacher_path, logging_steps=50)) == [5]
    assert "A step" not in capsys.readouterr().out
    assert lines_of(short_run(tmp_path, student_path, teacher_path, logging_steps=2)) == [2, 4]
