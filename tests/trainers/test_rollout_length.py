"""Short and growing rollouts: the limit of training, apart from evaluation's; who is stopped by it is not cut off."""

import pytest
import torch
from trl.trainer import grpo_trainer

from opd_trl import OPDConfig
from opd_trl.diagnostics import Monitor
from opd_trl.trainers.generation.plans import KIND
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, settings
from tests.trainers.test_given_text import lines_of
from tests.trainers.test_vllm import FakeEngine


GROWING = {"rollout_length_start": 4, "max_completion_length": 16, "max_steps": 6, "rollout_length_steps": 4}


def widths(trainer) -> list[int]:
    """Tokens of the longest completion of each generation batch of a run, which the batch's tensors are as wide as."""
    seen, answer = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: seen.append(answer(rows)) or seen[-1]
    trainer.train()
    assert all(batch["completion_mask"].sum(-1).max() == batch["completion_ids"].size(1) for batch in seen)
    return [batch["completion_ids"].size(1) for batch in seen]


def test_the_limit_grows_on_a_line_and_stays_where_it_ends(tmp_path, student_path, teacher_path):
    assert widths(opd_trainer(tmp_path, student_path, teacher_path, **GROWING)) == [4, 7, 10, 13, 16, 16]


def test_without_steps_it_grows_over_the_whole_run(tmp_path, student_path, teacher_path):
    options = GROWING | {"rollout_length_steps": None}
    assert widths(opd_trainer(tmp_path, student_path, teacher_path, **options)) == [4, 6, 8, 10, 12, 14]


def test_a_limit_may_be_a_share_and_is_never_above_that_of_evaluation(tmp_path):
    def limits(**options):
        config = OPDConfig(**settings(tmp_path, max_completion_length=200, **options))
        return config.first_rollout_limit, config.last_rollout_limit

    assert limits() == (200, 200)
    assert limits(rollout_length_start=0.1) == (20, 200)
    assert limits(rollout_length_start=0.001, rollout_length_end=0.5) == (1, 100)
    assert limits(rollout_length_start=100, rollout_length_end=100) == (100, 100)
    assert limits(rollout_length_start=300) == (200, 200)


def test_a_start_that_shortens_nothing_is_warned_of(tmp_path, caplog):
    OPDConfig(**settings(tmp_path, rollout_length_start=300))
    assert "rollout_length_start=300 has no effect here. It needs a max_completion_length above it." in caplog.text


def test_an_end_as_large_as_the_start_keeps_all_rollouts_short_and_evaluation_long(
    tmp_path, student_path, teacher_path
):
    options = GROWING | {"rollout_length_end": 4, "rollout_length_steps": None}
    trainer = opd_trainer(
        tmp_path, student_path, teacher_path, trainer_options={"eval_dataset": tiny.questions(4)}, **options
    )
    assert widths(trainer) == [4] * 6
    assert trainer.evaluate()["eval_completions/max_length"] == 16
    assert (trainer.max_completion_length, trainer.generation_config.max_new_tokens) == (16, 16)


def test_whoever_the_schedule_stops_is_not_masked_and_whoever_never_ends_is(tmp_path, student_path, teacher_path):
    options = GROWING | {"mask_truncated_completions": True}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    trainer.state.max_steps = 6
    batch = fixed_batch(trainer)
    ended = (batch["completion_ids"] == trainer.tokenizer.eos_token_id).any(-1)
    assert not ended.all()
    assert batch["loss_mask"][~ended].all()
    assert batch["num_loss_tokens"] == batch["loss_mask"].sum()
    trainer.state.global_step = 4
    batch = fixed_batch(trainer)
    ended = (batch["completion_ids"] == trainer.tokenizer.eos_token_id).any(-1)
    assert not ended.all()
    assert batch["loss_mask"][~ended].sum() == 0
    assert KIND not in batch


def test_lengths_of_stopped_rollouts_have_names_that_no_rule_reads(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **GROWING)
    trainer.train()
    lines = lines_of(trainer)
    assert [line.get("completions/partial/max_length") for line in lines] == [4, 7, 10, 13, None, None]
    assert [line.get("completions/max_length") for line in lines] == [None] * 4 + [16, 16]
    read = {c.figure for rule in Monitor().open for c in rule.conditions}
    assert not any("partial" in name for name in read)
    for name in read & {"completions/clipped_ratio", "completions/repetition", "distillation/divergence_q4"}:
        assert [name in line for line in lines] == [False] * 4 + [True] * 2
    assert all("support/overlap" in line and "entropy" in line for line in lines)


@pytest.mark.parametrize("options", [{}, {"teacher_prefix_tokens": 3}], ids=["alone", "behind a prefix"])
def test_vllm_is_asked_for_no_more_tokens_than_the_limit(tmp_path, student_path, teacher_path, monkeypatch, options):
    limits = []

    class Engine(FakeEngine):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.max_completion_length = kwargs["max_completion_length"]

        def generate(self, prompts, **rest):
            limits.append(self.max_completion_length)
            completions = [[5] * self.max_completion_length for _ in prompts]
            return prompts, completions, [[[-1.0]] * len(ids) for ids in completions], None

    monkeypatch.setattr(grpo_trainer, "is_vllm_available", lambda *args, **kwargs: True, raising=False)
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Engine)
    dataset = tiny.questions(completion=["so b", "s"] * 4)
    options = GROWING | {"use_vllm": True, "vllm_mode": "colocate", "loss_importance_cap": 2.0} | options
    trainer = opd_trainer(tmp_path, student_path, teacher_path, dataset=dataset, **options)
    trainer.state.max_steps = 6
    batch = fixed_batch(trainer)
    # The shortest prefix, of a text of one token, leaves room for three; the others are cut to the limit.
    assert limits == ([3] if "teacher_prefix_tokens" in options else [4])
    assert batch["completion_mask"].sum(-1).tolist() == [4] * 4
    assert torch.equal(batch["sampling_logps"], -batch["loss_mask"].float())
    assert trainer.vllm_generation.max_completion_length == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollout_length_start": 4, "rollout_length_end": 3}, r"start=4 \(4 tokens\) is above .*end=3 \(3 tokens of"),
        ({"rollout_length_start": 6, "rollout_length_end": 0.5}, r"is above rollout_length_end=0.5 \(4 tokens of max"),
        ({"rollout_length_start": 0}, "rollout_length_start must be > 0"),
        ({"rollout_length_start": 4, "max_completion_length": None}, "rollout_length_start needs an end"),
        ({"rollout_length_start": 4, "generation_kwargs": {"max_tokens": 9}}, "generation_kwargs has 'max_tokens'"),
    ],
)
def test_limits_that_cannot_be_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        OPDConfig(**settings(tmp_path, **options))


@pytest.mark.parametrize("name", ["rollout_length_end", "rollout_length_steps", "teacher_prefix_steps"])
def test_a_schedule_of_nothing_is_warned_of(tmp_path, caplog, name):
    OPDConfig(**settings(tmp_path, **{name: 4}))
    assert f"{name}=4 has no effect here. It needs" in caplog.text


def test_a_rollout_func_and_rewards_are_told_what_a_limit_does_to_them(tmp_path, student_path, teacher_path, caplog):
    def rollout(prompts, trainer):
        return {}

    with pytest.raises(ValueError, match="rollout_length_start=4 with rollout_func"):
        opd_trainer(tmp_path, student_path, teacher_path, trainer_options={"rollout_func": rollout}, **GROWING)
    rewards = {"reward_funcs": lambda completions, **_: [1.0] * len(completions)}
    opd_trainer(tmp_path, student_path, teacher_path, trainer_options=rewards, **GROWING)
    assert "a rollout that is stopped has no end, and the rewards judge it as it is" in caplog.text
