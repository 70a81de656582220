"""vLLM does not install beside TRL on a CPU: a fake engine at the border that TRL itself calls."""

from types import SimpleNamespace

import pytest
import torch
from trl.trainer import grpo_trainer

from tests import tiny
from tests.trainers.build import opd_trainer, opsd_trainer


class FakeEngine:
    """Takes TRL's arguments; answers every prompt with its own length in tokens."""

    def __init__(self, model, accelerator, **options):
        self.model, self.options = model, options
        self.synced, self.asked = [], []
        info = {"model_config": {"logprobs_mode": "processed_logprobs"}}
        self.vllm_client = SimpleNamespace(get_server_info=lambda: info)

    def sync_weights(self):
        self.synced.append(next(self.model.parameters()).detach().clone())

    def generate(self, prompts, images, num_generations, profiler):
        self.asked.append((len(prompts), num_generations))
        completions = [[5 + len(prompt) % 90, 6, 2] for prompt in prompts]
        return prompts, completions, [[[-1.0]] * 3 for _ in prompts], None


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch):
    monkeypatch.setattr(grpo_trainer, "is_vllm_available", lambda *args, **kwargs: True, raising=False)
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", FakeEngine)


def count_forwards(module) -> list:
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_a_run_syncs_the_weights_before_every_generation_and_learns_from_what_comes_back(
    tmp_path, student_path, teacher_path, mode
):
    options = {"use_vllm": True, "vllm_mode": mode, "vllm_gpu_memory_utilization": 0.2}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, max_steps=3, **options)
    trainer.train()
    engine = trainer.vllm_generation
    assert (engine.options["mode"], engine.options["gpu_memory_utilization"]) == (mode, 0.2)
    assert len(engine.synced) == 3
    assert not torch.equal(engine.synced[0], engine.synced[2])
    assert engine.asked == [(4, 1)] * 3
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["completions/mean_length"] for entry in history] == [3.0] * 3
    assert all(entry["distillation/per_token_divergence"] > 0 for entry in history)


@pytest.mark.parametrize("asked_for", [True, False])
def test_distillation_alone_pays_for_no_forward_of_old_log_probs(tmp_path, student_path, asked_for):
    options = {"use_vllm": True, "vllm_importance_sampling_correction": asked_for, "gradient_checkpointing": False}
    trainer = opsd_trainer(tmp_path, student_path, max_steps=2, **options)
    calls = count_forwards(trainer.model.get_base_model().base_model)
    trainer.train()
    # Student and teacher, one look at the teacher as training begins, and its first rows as a tree and one by one.
    assert len(calls) == 2 * 2 + 1 + 1


def test_a_buffer_that_feeds_several_steps_needs_no_old_log_probs_either(tmp_path, student_path, teacher_path):
    options = {"steps_per_generation": 2, "use_vllm": True, "gradient_checkpointing": False}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, max_steps=2, **options)
    calls = count_forwards(trainer.model.base_model)
    trainer.train()
    assert (len(calls), len(trainer.vllm_generation.asked)) == (2, 1)


def test_a_policy_loss_keeps_its_importance_correction(tmp_path, student_path, teacher_path):
    rewards = {"reward_funcs": lambda completions, **_: [float(len(c) % 2) for c in completions]}
    options = {"use_vllm": True, "num_generations": 2, "gradient_checkpointing": False}
    trainer = opd_trainer(
        tmp_path, student_path, teacher_path, trainer_options=rewards, dataset=tiny.questions(), max_steps=2, **options
    )
    assert trainer.vllm_importance_sampling_correction
    calls = count_forwards(trainer.model.base_model)
    trainer.train()
    assert len(calls) == 2 * 2  # old log-probs and the loss
    assert any("importance_sampling" in key for key in trainer.state.log_history[0])
