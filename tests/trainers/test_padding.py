"""Micro-batches by length, cut to their longest row, a shared context read once: the same loss and gradient."""

import pytest
import torch
from datasets import Dataset
from trl.trainer.utils import split_tensor_dict

from opd_trl.teachers import base, shared_prefix
from opd_trl.trainers import opd_trainer as trainer_module
from opd_trl.trainers import readable
from opd_trl.trainers.readable import computed_tokens
from opd_trl.trainers.scoring import score_tokens
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, opsd_trainer


LENGTHS = [1, 30, 2, 12, 3, 7, 25, 5, 2, 16, 4, 9, 1, 20, 6, 3]


def step(trainer, monkeypatch, *, sort=True):
    """Gradient, logged figures and computed tokens of one optimizer step over completions of given lengths."""
    with monkeypatch.context() as patch:
        if not sort:
            patch.setattr(trainer_module, "by_length", lambda batches: batches)
        computed, seen = [], []
        trainer.model.base_model.register_forward_pre_hook(
            lambda _, args, kwargs: computed.append(kwargs["input_ids"].numel()) if torch.is_grad_enabled() else None,
            with_kwargs=True,
        )
        generate = trainer._generate_and_score_completions

        def with_lengths(rows):
            batch = generate(rows)
            wanted = torch.tensor(LENGTHS)[:, None]
            generator = torch.Generator().manual_seed(len(seen))
            batch["completion_ids"] = torch.randint(3, 100, (len(rows), max(LENGTHS)), generator=generator)
            batch["completion_mask"] = (torch.arange(max(LENGTHS)) < wanted).long()
            batch["loss_mask"] = batch["completion_mask"].clone()
            batch["num_loss_tokens"] = batch["num_items_in_batch"] = batch["loss_mask"].sum()
            seen.append(batch)
            return batch

        patch.setattr(trainer, "_generate_and_score_completions", with_lengths)
        gradients = []
        norm = trainer.accelerator.clip_grad_norm_

        def keep(parameters, *args):
            gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
            return norm(parameters, *args)

        patch.setattr(trainer.accelerator, "clip_grad_norm_", keep)
        trainer.train()
    return gradients, trainer.state.log_history[:-1], computed, seen


SIZES = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "max_completion_length": 30, "seed": 3}


def test_sorted_rows_give_the_gradient_and_the_figures_of_unsorted_ones(
    tmp_path, student_path, teacher_path, monkeypatch
):
    options = SIZES | {"dataset": tiny.questions(16)}
    one, figures, computed, seen = step(opd_trainer(tmp_path, student_path, teacher_path, **options), monkeypatch)
    two, others, _, _ = step(opd_trainer(tmp_path, student_path, teacher_path, **options), monkeypatch, sort=False)
    assert (one[0] - two[0]).norm() <= 1e-6 * two[0].norm()
    figures, others = figures[0], others[0]
    names = [name for name in figures if name.split("/")[0] in ("distillation", "support", "teacher", "loss")]
    assert len(names) >= 8
    assert {name: figures[name] for name in names} == pytest.approx({name: others[name] for name in names}, rel=1e-4)
    real = sum(seen[0][name].sum().item() for name in ("prompt_mask", "completion_mask"))
    assert sum(computed) <= 1.1 * real
    assert figures["tokens/computed_per_real"] == pytest.approx(sum(computed) / real, rel=1e-5)
    assert others["tokens/computed_per_real"] > 1.1


def test_rows_stay_in_their_optimizer_step(tmp_path, student_path, teacher_path, monkeypatch):
    """One generation batch for two steps: sorted over both, the first step would take all long rows."""
    options = SIZES | {"gradient_accumulation_steps": 4, "steps_per_generation": 8, "max_steps": 2}
    options["dataset"] = tiny.questions(16)
    one, *_ = step(opd_trainer(tmp_path, student_path, teacher_path, **options), monkeypatch)
    two, *_ = step(opd_trainer(tmp_path, student_path, teacher_path, **options), monkeypatch, sort=False)
    assert len(one) == len(two) == 2
    assert (one[0] - two[0]).norm() <= 1e-6 * two[0].norm()


@pytest.mark.parametrize(
    ("options", "may_move"),
    [
        ({}, True),
        ({"loss_type": "dapo"}, True),
        ({"loss_type": "bnpo"}, False),
        ({"top_entropy_quantile": 0.5}, False),
        ({"entropy_coef": 0.1}, False),
    ],
)
def test_rows_stay_where_grpos_own_loss_depends_on_the_micro_batch(
    tmp_path, student_path, teacher_path, options, may_move
):
    rewards = {"reward_funcs": lambda completions, **_: [float(i) for i in range(len(completions))]}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, num_generations=2, trainer_options=rewards, **options)
    assert trainer.rows_may_move is may_move
    trainer.aux_loss_enabled = True
    assert trainer.rows_may_move is False


def test_micro_batches_by_tokens_give_the_gradient_and_the_figures_of_equal_ones(
    tmp_path, student_path, teacher_path, monkeypatch
):
    """Of each optimizer step's 8 rows in 4 calls: one forward or two for each, or one for all four; two steps."""
    options = SIZES | {"gradient_accumulation_steps": 4, "steps_per_generation": 8, "max_steps": 2}
    options["dataset"] = tiny.questions(16)
    expected, figures, *_ = step(opd_trainer(tmp_path, student_path, teacher_path, **options), monkeypatch, sort=False)
    for budget, (fewest, most) in {59: (16, 16), 130: (5, 12), 10_000: (2, 2)}.items():
        trainer = opd_trainer(tmp_path, student_path, teacher_path, micro_batch_tokens=budget, **options)
        found, others, computed, _ = step(trainer, monkeypatch)
        assert max(computed) <= budget
        assert fewest <= len(computed) <= most
        for a, b, tolerance in zip(found, expected, [1e-6, 1e-3], strict=True):  # AdamW enlarges what rounding does
            assert (a - b).norm() <= tolerance * b.norm()
        for a, b, tolerance in zip(others, figures, [1e-4, 1e-2], strict=True):
            names = [name for name in b if name.split("/")[0] in ("distillation", "support", "teacher", "loss")]
            assert {name: a[name] for name in names} == pytest.approx({name: b[name] for name in names}, rel=tolerance)
            assert a["step_time"] >= a["time/student"]  # also of the micro-batches before a call's last one


REWARDS = {"reward_funcs": lambda completions, **_: [len(x[0]["content"]) + i for i, x in enumerate(completions)]}


def test_micro_batches_by_tokens_give_grpos_losses_too(tmp_path, student_path, teacher_path):
    options = SIZES | {"num_generations": 2, "beta": 0.1, "gradient_accumulation_steps": 2, "micro_batch_tokens": 60}
    options |= {"per_device_train_batch_size": 4, "trainer_options": REWARDS}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    batch = split_tensor_dict(fixed_batch(trainer), 2)
    batch[0]["completion_mask"][:2, 3:] = batch[0]["loss_mask"][:2, 3:] = 0

    def gradient(micro_batches):
        losses = [trainer.batch_loss(x) for x in micro_batches]
        trainer.model.zero_grad()
        sum(losses).backward()
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    for loss_type in ("grpo", "dr_grpo", "sapo", "luspo", "dapo", "cispo", "vespo"):
        trainer.loss_type = loss_type
        trainer.args.micro_batch_tokens = None
        expected = gradient(batch)
        trainer.args.micro_batch_tokens = 190
        calls = trainer._by_length(batch)
        by_tokens = [x for call in calls for x in call]
        assert len({len(x["completion_ids"]) for x in by_tokens}) > 1
        assert (gradient(by_tokens) - expected).norm() <= 1e-6 * expected.norm()


def test_a_row_above_micro_batch_tokens_stops_before_the_step(tmp_path, student_path, teacher_path, monkeypatch):
    options = SIZES | {"dataset": tiny.questions(16), "micro_batch_tokens": 58}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    before = {name: x.clone() for name, x in trainer.model.named_parameters()}
    with pytest.raises(ValueError, match=r"micro_batch_tokens=58 .* which has 59 tokens.* Set it to 59 or more"):
        step(trainer, monkeypatch)
    assert trainer.state.global_step == 0
    assert all(torch.equal(x, before[name]) for name, x in trainer.model.named_parameters())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"loss_type": "bnpo"}, "loss_type: bnpo.* Set loss_type: dapo"),
        ({"top_entropy_quantile": 0.5}, "top_entropy_quantile: 0.5.* Set top_entropy_quantile: 1.0"),
        ({"entropy_coef": 0.1}, "an entropy bonus.* Set entropy_coef: 0.0"),
    ],
)
def test_micro_batch_tokens_is_refused_where_rows_may_not_move(tmp_path, student_path, teacher_path, options, told):
    options |= {"num_generations": 2, "trainer_options": REWARDS, "micro_batch_tokens": 500}
    with pytest.raises(ValueError, match=f"micro_batch_tokens=500 with {told}"):
        opd_trainer(tmp_path, student_path, teacher_path, **options)


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_a_teacher_with_a_longer_prompt_counts_where_it_scores_micro_batches(
    tmp_path, student_path, teacher_path, monkeypatch, caplog, offload
):
    """A text that it has read once does not, nor one that scores ahead; a completion above the budget is told."""
    options = {"dataset": tiny.questions(8, privileged_context=CONTEXT), "micro_batch_tokens": 8}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, teacher_offload=offload, **options)
    assert "micro_batch_tokens=8, and a completion may have 8 tokens" in caplog.text
    batch = fixed_batch(trainer)
    student, both = (batch[f"{who}prompt_mask"].sum(-1) + batch["completion_mask"].sum(-1) for who in ("", "teacher_"))
    shared = batch["shared_tokens"]
    assert shared > len(CONTEXT) > student.max()
    expected = student if offload else torch.maximum(student, both - shared)
    assert computed_tokens(trainer, batch).tolist() == expected.tolist()
    monkeypatch.setattr(readable, "FEWEST", 10**6)
    assert computed_tokens(trainer, batch).tolist() == (student if offload else both).tolist()


def test_a_run_by_tokens_goes_on_between_two_steps_of_one_generation(
    tmp_path, student_path, teacher_path, monkeypatch
):
    options = SIZES | {"gradient_accumulation_steps": 4, "steps_per_generation": 8, "max_steps": 2}
    options |= {"dataset": tiny.questions(16), "micro_batch_tokens": 130, "save_strategy": "steps", "save_steps": 1}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    step(trainer, monkeypatch)
    whole = {name: x.clone() for name, x in trainer.model.named_parameters()}
    again = opd_trainer(tmp_path, student_path, teacher_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert again.state.global_step == 2
    assert all(torch.equal(x, whole[name]) for name, x in again.model.named_parameters())


CONTEXT = "Answer with the letter b. " * 12  # 312 tokens


@pytest.mark.parametrize(
    ("options", "times_read"),
    [({"teacher_model_kind": "base"}, 1), ({"teacher_model_kind": "live"}, 3), ({"teacher_model_kind": "ema"}, 3)],
)
def test_a_shared_context_is_read_once_and_gives_the_same_gradient(
    tmp_path, student_path, monkeypatch, options, times_read
):
    """Once a run where the teacher is frozen, and anew where it has moved: the student moves far in each step."""
    options = SIZES | options | {"max_steps": 3, "max_grad_norm": 100.0, "learning_rate": 1.0}
    options |= {"optim": "sgd"}  # Adam turns the rounding of a first step into far steps
    options |= {"dataset": tiny.questions(16, privileged_context=CONTEXT), "lora": False}
    if options["teacher_model_kind"] == "ema":
        options["teacher_update_rate"] = 0.5
    made, cache = [], shared_prefix.PrefixCache
    monkeypatch.setattr(shared_prefix, "PrefixCache", lambda *args: made.append(args) or cache(*args))
    trainer = opsd_trainer(tmp_path, student_path, **options)
    one, *_, seen = step(trainer, monkeypatch)
    assert trainer.teacher.prefix.packs
    assert len(made) == times_read
    assert all(len(CONTEXT) <= batch["shared_tokens"] < len(CONTEXT) + 60 for batch in seen)
    monkeypatch.setattr(base, "holds_text_alone", lambda batch: False)
    trainer = opsd_trainer(tmp_path, student_path, **options)
    two, *_ = step(trainer, monkeypatch)
    assert trainer.teacher.prefix is None
    for a, b in zip(one, two, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_a_reference_reads_what_completions_of_one_prompt_share_once(
    tmp_path, student_path, teacher_path, monkeypatch
):
    """Log-probabilities of a reference model: the same as row by row, from fewer tokens."""
    texts = [[{"role": "user", "content": f"{i} {CONTEXT}"}] for i in range(8)]
    options = {
        "loss_extrapolation": 1.5,
        "loss_support": "sampled",
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_steps": 1,
    }
    options |= {"dataset": Dataset.from_dict({"prompt": texts}), "gradient_accumulation_steps": 2}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    seen, generate = [], trainer._generate_and_score_completions
    monkeypatch.setattr(
        trainer, "_generate_and_score_completions", lambda rows: seen.append(generate(rows)) or seen[-1]
    )
    trainer.train()
    assert trainer.reference.prefix.packs
    tokens = []
    trainer.reference.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    packed = score_tokens(trainer, trainer.reference, seen[0])
    as_tree, tokens[:] = sum(tokens), []
    monkeypatch.setattr(base, "holds_text_alone", lambda batch: False)
    torch.testing.assert_close(packed, score_tokens(trainer, trainer.reference, seen[0]), rtol=1e-4, atol=1e-5)
    prompts = seen[0]["prompt_mask"].sum().item()
    assert as_tree <= prompts / 4 + seen[0]["completion_mask"].sum().item() < sum(tokens) / 2
