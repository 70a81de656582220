"""What OPDTrainer runs, logs, masks and refuses while it trains."""

import pytest
import torch
from datasets import IterableDataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.trainers.build import fixed_batch, lora_config, opd_trainer, opsd_trainer


def count_forwards(module) -> list[int]:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("rewards", [False, True])
def test_one_student_forward_and_one_teacher_forward_per_micro_batch(tmp_path, student_path, teacher_path, rewards):
    options = {"reward_funcs": lambda completions, **_: [len(c[0]["content"]) for c in completions]} if rewards else {}
    trainer = opd_trainer(
        tmp_path,
        student_path,
        teacher_path,
        trainer_options=options,
        num_generations=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=False,
    )
    batches = [{k: v[:4] if v.ndim else v for k, v in fixed_batch(trainer).items()} for _ in range(2)]
    student = count_forwards(trainer.model.base_model)
    teacher = count_forwards(trainer.teacher.model.base_model)
    for batch in batches:
        trainer._compute_loss(trainer.model, batch).backward()
    assert (len(student), len(teacher)) == (2, 2)


def test_a_self_teacher_runs_the_backbone_twice_per_micro_batch(tmp_path, student_path):
    trainer = opsd_trainer(tmp_path, student_path, gradient_checkpointing=False)
    batch = fixed_batch(trainer)
    trainer.teacher_scores(trainer.model, batch)  # reads the first rows in two ways, and compares
    calls = count_forwards(trainer.model.get_base_model().base_model)
    trainer._compute_loss(trainer.model, batch).backward()
    assert len(calls) == 2


def test_training_lowers_the_divergence_and_logs_its_metrics(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(
        tmp_path, student_path, teacher_path, max_steps=30, loss_support="full", divergence="forward_kl"
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    divergences = [entry["distillation/per_token_divergence"] for entry in history]
    assert sum(divergences[-5:]) < 0.7 * sum(divergences[:5])
    expected = {
        "distillation/per_token_divergence",
        "support/student_mass",
        "support/teacher_mass",
        "support/overlap",
        "entropy",
        "completions/mean_length",
    }
    assert expected <= history[0].keys()
    assert not [name for name in history[0] if "reward" in name or "clip_ratio" in name]


def test_the_kl_anchor_to_the_initial_model_needs_no_reward(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, beta=0.5, max_steps=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert logged
    assert not [name for name in logged[0] if "reward" in name]


def test_evaluation_reports_the_loss_and_the_same_metrics(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(
        tmp_path,
        student_path,
        teacher_path,
        trainer_options={"eval_dataset": tiny.questions(4)},
        eval_strategy="steps",
    )
    metrics = trainer.evaluate()
    logged = trainer.state.log_history[-1]
    assert metrics["eval_loss"] > 0
    assert {"eval_support/student_mass", "eval_distillation/per_token_divergence"} <= logged.keys()
    assert abs(logged["eval_distillation/per_token_divergence"] - metrics["eval_loss"]) < 1e-5


def test_skipped_tokens_truncated_completions_and_tool_results_are_left_out(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, num_loss_tokens_to_skip=3)
    batch = fixed_batch(trainer)
    assert batch["loss_mask"][:, :3].sum() == 0
    assert batch["num_loss_tokens"] == batch["loss_mask"].sum() == batch["completion_mask"][:, 3:].sum()

    trainer = opd_trainer(tmp_path, student_path, teacher_path, mask_truncated_completions=True)
    batch = fixed_batch(trainer)
    truncated = batch["completion_mask"].sum(-1) == 0
    assert truncated.any()  # a random model rarely stops within 8 tokens
    assert batch["loss_mask"][truncated].sum() == 0

    def rollout(prompts, trainer):
        ids = trainer._tokenize_prompts(prompts)[0]
        return {
            "prompt_ids": ids,
            "completion_ids": [[10, 11, 12, 2]] * len(ids),
            "logprobs": None,
            "env_mask": [[1, 0, 0, 1]] * len(ids),
        }

    trainer = opd_trainer(tmp_path, student_path, teacher_path, trainer_options={"rollout_func": rollout})
    assert fixed_batch(trainer)["loss_mask"].tolist() == [[1, 0, 0, 1]] * 4


@pytest.mark.parametrize("support", ["student", "teacher", "intersection", "union", "full", "sampled"])
def test_every_support_trains(tmp_path, student_path, teacher_path, support):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, loss_support=support)
    before = trainer.model.lm_head.weight.clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.lm_head.weight)


def test_text_prompts_and_several_generations_work(tmp_path, student_path, teacher_path):
    dataset = tiny.questions(conversational=False, privileged_context="b")
    trainer = opd_trainer(
        tmp_path, student_path, teacher_path, dataset=dataset, num_generations=4, privileged_builder="hint"
    )
    batch = fixed_batch(trainer, [dataset[0]] * 4)
    text = trainer.processing_class.decode(batch["teacher_prompt_ids"][0])
    assert text == f"{dataset[0]['prompt']}\n\nA hint, for you alone: b"
    trainer.train()


def test_a_teacher_with_a_wider_padded_head_is_cut_to_the_real_rows(tmp_path, student_path):
    wide = tiny.build_model(seed=0, vocab_size=128)
    narrow = tiny.build_model(seed=0)
    wide.load_state_dict(
        narrow.state_dict()
        | {
            k: torch.cat([narrow.state_dict()[k], torch.randn(25, 32)])
            for k in ("lm_head.weight", "model.embed_tokens.weight")
        }
    )
    trainer = opd_trainer(
        tmp_path,
        student_path,
        wide,
        trainer_options={"teacher_processing_class": tiny.build_tokenizer()},
        gradient_checkpointing=False,
    )
    loss = trainer._compute_loss(trainer.model, fixed_batch(trainer))
    assert abs(loss.item()) < 1e-6  # the same 103 rows: the teacher is the student


def test_a_thinking_teacher_of_a_non_thinking_student_reads_another_prompt(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, teacher_chat_template_kwargs={"enable_thinking": True})
    batch = fixed_batch(trainer)
    decode = trainer.processing_class.decode
    assert decode(batch["teacher_prompt_ids"][0]).endswith("assistant\n[think]")
    assert decode(batch["prompt_ids"][0]).endswith("assistant\n")


def test_nan_in_the_teacher_stops_with_step_and_row(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path)
    batch = fixed_batch(trainer)
    token = batch["completion_ids"][2, 0]
    only_row_2 = (batch["prompt_ids"] == token).any(-1) | (batch["completion_ids"] == token).any(-1)
    with torch.no_grad():
        trainer.teacher.model.model.embed_tokens.weight[token] = torch.nan
    rows = only_row_2.nonzero().flatten().tolist()
    with pytest.raises(FloatingPointError, match=r"NaN or infinite at step 0, rows \["):
        trainer._compute_loss(trainer.model, batch)
    assert 2 in rows


def test_a_dropped_tail_with_little_student_mass_warns_once(tmp_path, student_path, teacher_path, caplog):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, loss_tail="drop", loss_top_k=2, max_steps=3)
    trainer.train()
    assert sum("leaks mass into the tail" in record.message for record in caplog.records) == 1


def test_a_streamed_data_set_brings_its_privileged_context_too(tmp_path, student_path, teacher_path):
    rows = list(tiny.questions(8, privileged_context="Say b."))
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert stream.column_names is None
    trainer = opd_trainer(tmp_path, student_path, teacher_path, dataset=stream, max_steps=2)
    assert "teacher_prompt_ids" in fixed_batch(trainer, rows[:4])
    trainer.train()


def test_resuming_restores_an_adapter_that_the_user_brought_beside_trls_reference(
    tmp_path, student_path, teacher_path
):
    def trainer():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(student_path), lora_config())
        return opd_trainer(tmp_path, model, teacher_path, beta=0.1, max_steps=2, save_strategy="steps", save_steps=2)

    first, resumed = trainer(), trainer()
    first.train()
    resumed.train(resume_from_checkpoint=True)
    assert set(resumed.model.peft_config) == {"default", "ref"}
    trained = {name for name, p in first.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in resumed.model.named_parameters() if p.requires_grad}
    for name, parameter in first.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name
