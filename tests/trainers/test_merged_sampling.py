"""A LoRA student samples from merged weights, and trains as if it had not."""

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from trl import GRPOTrainer

from opd_trl.models import merged
from tests import tiny
from tests.trainers.build import lora_config, opd_trainer, opsd_trainer


@pytest.fixture
def seen(monkeypatch):
    """For each generation: were the student's adapters merged?"""
    found, generate = [], GRPOTrainer._generate_single_turn

    def record(trainer, *args, **kwargs):
        found.append(any(part.merged for part in trainer.model.modules() if isinstance(part, LoraLayer)))
        return generate(trainer, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", record)
    return found


def run(trainer) -> tuple[list, list, dict]:
    """Losses, completions and the trained adapter."""
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    adapter = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    return losses, trainer.last_completions, adapter


def test_training_is_the_same_as_without(tmp_path, student_path, seen, monkeypatch):
    options = {"max_steps": 3, "max_completion_length": 12, "eval_strategy": "steps", "eval_steps": 3}
    data = {"eval_dataset": tiny.questions(4, privileged_context="Answer with b.")}
    losses, completions, weights = run(opsd_trainer(tmp_path, student_path, trainer_options=dict(data), **options))
    assert seen == [True] * 4
    monkeypatch.setattr(merged, "can_merge", lambda *_: False)
    expected = run(opsd_trainer(tmp_path, student_path, trainer_options=dict(data), **options))
    assert seen[4:] == [False] * 4
    assert completions == expected[1]
    assert losses == pytest.approx(expected[0], abs=1e-5)
    for name, value in expected[2].items():
        assert torch.equal(value, weights[name]) or "lora_" in name, name
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4)


def test_a_student_in_bfloat16_samples_as_it_is(tmp_path, student_path, seen):
    opsd_trainer(tmp_path, student_path, model_init_kwargs={"dtype": "bfloat16"}).train()
    assert seen == [False]


@pytest.mark.parametrize(("bf16", "merged"), [(False, True), (True, False)])
def test_continuous_batching_samples_merged_unless_trl_casts_the_model(tmp_path, student_path, seen, bf16, merged):
    small = {"num_blocks": 16, "max_batch_tokens": 64}
    options = {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": small}
    options |= {"bf16": bf16, "max_completion_length": 2}
    trainer = opsd_trainer(tmp_path, student_path, **options)
    trainer.train()
    assert seen == [merged]
    assert any("lora_B" in name and x.any() for name, x in trainer.model.named_parameters())


def test_a_student_under_rewards_samples_merged(tmp_path, student_path, teacher_path, seen):
    options = {"reward_funcs": lambda completions, **_: [float(len(c[0]["content"])) for c in completions]}
    trainer_options = options | {"peft_config": lora_config()}
    opd_trainer(tmp_path, student_path, teacher_path, trainer_options=trainer_options, num_generations=2).train()
    assert seen == [True]
