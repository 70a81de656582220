"""The loss of a trainer against the models' own logits, however the batch is split."""

from dataclasses import replace

import pytest
import torch

from opd_trl.losses import masked_mean, support_divergence
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, opsd_trainer


def dense_log_probs(model, prompt_ids, prompt_mask, batch, temperature=1.0):
    """The reference: the model's own logits, without any code of the trainer."""
    ids = torch.cat([prompt_ids, batch["completion_ids"]], dim=1)
    mask = torch.cat([prompt_mask, batch["completion_mask"]], dim=1)
    logits = model(input_ids=ids, attention_mask=mask).logits
    length = batch["completion_ids"].size(1)
    return (logits[:, -length - 1 : -1] / temperature).log_softmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_temperature": 1.3},
        {"loss_tail": "drop"},
        {"loss_tail": "drop", "stop_gradient": False},
        {"loss_tail": "bucket", "divergence": "jsd", "divergence_beta": 0.2},
        {"divergence": "mixed", "divergence_beta": 0.9},
        {"divergence": "forward_kl", "distillation_coef": 0.5},
    ],
)
def test_loss_and_gradient_are_those_of_both_models_own_logits(tmp_path, student_path, teacher_path, options):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    batch = fixed_batch(trainer)
    loss = trainer._compute_loss(trainer.model, batch)
    (gradient,) = torch.autograd.grad(loss, trainer.model.lm_head.weight)

    temperature = options.pop("loss_temperature", 1.0)
    coef = options.pop("distillation_coef", 1.0)
    student = dense_log_probs(trainer.model, batch["prompt_ids"], batch["prompt_mask"], batch, temperature)
    teacher = dense_log_probs(trainer.teacher.model, batch["prompt_ids"], batch["prompt_mask"], batch, temperature)
    ids = student.topk(5, dim=-1).indices
    names = {"loss_tail": "tail", "divergence_beta": "beta"}
    options = {names.get(name, name): value for name, value in options.items()}
    per_token = support_divergence(student.gather(-1, ids), teacher.gather(-1, ids), **options)
    expected = coef * masked_mean(per_token, batch["completion_mask"])
    (expected_gradient,) = torch.autograd.grad(expected, trainer.model.lm_head.weight)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_a_privileged_teacher_scores_its_own_prompt_and_exactly_the_same_completion(tmp_path, student_path):
    rows = ["Say b.", "Say b and then c, at some length.", "x", "Say d."] * 2
    trainer = opsd_trainer(tmp_path, student_path, dataset=tiny.questions(privileged_context=rows))
    batch = fixed_batch(trainer)
    tokenizer = trainer.processing_class
    for i, context in enumerate(rows[:4]):
        ids = batch["teacher_prompt_ids"][i][batch["teacher_prompt_mask"][i].bool()]
        question = trainer.train_dataset[i]["prompt"]
        expected = tokenizer.apply_chat_template(
            [{"role": "system", "content": context}, *question], add_generation_prompt=True
        )["input_ids"]
        assert ids.tolist() == expected
    loss = trainer._compute_loss(trainer.model, batch)

    student = dense_log_probs(trainer.model, batch["prompt_ids"], batch["prompt_mask"], batch)
    with trainer.model.disable_adapter():
        teacher = dense_log_probs(trainer.model, batch["teacher_prompt_ids"], batch["teacher_prompt_mask"], batch)
    ids = student.topk(5, dim=-1).indices
    per_token = support_divergence(student.gather(-1, ids), teacher.gather(-1, ids))
    mask = batch["completion_mask"]
    assert loss > 0
    torch.testing.assert_close(loss, (per_token * mask).sum() / mask.sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rewards", [False, True])
def test_the_gradient_does_not_depend_on_how_the_batch_is_split(tmp_path, student_path, teacher_path, rewards):
    """1 x 8, 2 x 4 and 8 x 1 (batch x accumulation), completions of different lengths."""
    options = {"reward_funcs": lambda completions, **_: [float(i) for i in range(len(completions))]} if rewards else {}
    gradients = []
    batch = None
    for size, steps in [(8, 1), (4, 2), (2, 4), (1, 8)]:
        trainer = opd_trainer(
            tmp_path,
            student_path,
            teacher_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            num_generations=2 if rewards else 1,
            trainer_options=options,
        )
        if batch is None:
            batch = fixed_batch(trainer)
            lengths = torch.tensor([8, 3, 5, 1, 8, 2, 7, 4])
            batch["completion_mask"] = (torch.arange(8) < lengths[:, None]).long()
            batch["loss_mask"] = batch["completion_mask"].clone()
            batch["num_loss_tokens"] = batch["num_items_in_batch"] = batch["loss_mask"].sum()
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = steps
        for start in range(0, 8, size):
            part = {k: v[start : start + size] if v.ndim else v for k, v in batch.items()}
            trainer._compute_loss(trainer.model, part).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


def test_a_generation_batch_that_feeds_two_steps_gives_each_its_share(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(
        tmp_path,
        student_path,
        teacher_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
    )
    batch = fixed_batch(trainer)
    losses = [
        trainer._compute_loss(trainer.model, {k: v[i : i + 2] if v.ndim else v for k, v in batch.items()}).item()
        for i in (0, 2, 4, 6)
    ]
    divergence = trainer._metrics["train"]["distillation/per_token_divergence"]
    tokens = [batch["loss_mask"][i : i + 2].sum().item() for i in (0, 2, 4, 6)]
    mean = sum(d * n for d, n in zip(divergence, tokens, strict=True)) / sum(tokens)
    assert abs(sum(losses) - 2 * mean) < 1e-5  # two optimizer steps, each the mean over about half of the tokens


def test_grpos_log_probs_are_those_at_the_sampling_temperature(tmp_path, student_path, teacher_path):
    rewards = {"reward_funcs": lambda completions, **_: [1.0, 0.0] * (len(completions) // 2)}
    trainer = opd_trainer(
        tmp_path,
        student_path,
        teacher_path,
        num_generations=2,
        temperature=0.5,
        loss_temperature=2.0,
        trainer_options=rewards,
    )
    batch = fixed_batch(trainer)
    trainer._compute_loss(trainer.model, batch)
    log_probs = dense_log_probs(trainer.model, batch["prompt_ids"], batch["prompt_mask"], batch, 0.5)
    mask = batch["completion_mask"].bool()
    expected = -(log_probs.exp() * log_probs).sum(-1)[mask].mean().item()
    assert abs(trainer._metrics["train"]["entropy"][0] - expected) < 1e-4


def test_rewards_are_logged_and_mixed_in_with_their_coefficient(tmp_path, student_path, teacher_path):
    losses = {}
    for coef in (0.0, 1.0, 2.0):
        trainer = opd_trainer(
            tmp_path,
            student_path,
            teacher_path,
            num_generations=2,
            policy_coef=coef,
            trainer_options={"reward_funcs": lambda completions, **_: [1.0, 0.0] * (len(completions) // 2)},
        )
        torch.manual_seed(0)
        batch = fixed_batch(trainer)
        trainer._compute_loss(trainer.model, batch).backward()
        losses[coef] = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        assert trainer._metrics["train"]["rewards/<lambda>/mean"] == [0.5]
    policy = losses[1.0] - losses[0.0]
    assert policy.norm() > 1e-3
    torch.testing.assert_close(losses[2.0] - losses[0.0], 2 * policy, rtol=1e-3, atol=1e-5)


def test_a_batch_without_any_kept_token_gives_a_zero_that_keeps_its_graph(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, num_loss_tokens_to_skip=100)
    loss = trainer._compute_loss(trainer.model, fixed_batch(trainer))
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in trainer.model.parameters() if p.grad is not None)


def test_the_memory_budget_sets_how_many_tokens_reach_the_head_at_once(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, loss_memory_mib=1)
    assert trainer.objective.chunk_size == 2**20 // (2 * 4 * trainer.num_rows)
    trainer.objective = replace(trainer.objective, chunk_size=3)
    batch = fixed_batch(trainer)
    in_chunks = trainer._compute_loss(trainer.model, batch)
    trainer.objective = replace(trainer.objective, chunk_size=1000)
    torch.testing.assert_close(in_chunks, trainer._compute_loss(trainer.model, batch))
