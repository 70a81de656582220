"""Where a teacher lies and how many completions it scores at once: the same numbers, other costs."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch.torch_version import TorchVersion

from opd_trl.teachers import base, model_teacher
from opd_trl.teachers.model_teacher import check_quantized
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, opsd_trainer


def loss_and_gradient(trainer, batch):
    loss = trainer._compute_loss(trainer.model, batch)
    return loss.detach(), torch.autograd.grad(loss, trainer.model.lm_head.weight)[0]


@pytest.mark.parametrize("rows_at_once", [1, 3, 8, 100])
def test_scoring_ahead_gives_the_loss_of_scoring_with_the_micro_batch(
    tmp_path, student_path, teacher_path, rows_at_once, monkeypatch
):
    forwards = []
    teacher_pass = base.teacher_pass
    monkeypatch.setattr(
        base,
        "teacher_pass",
        lambda teacher, rows, **_: forwards.append(len(rows["prompt_ids"])) or teacher_pass(teacher, rows),
    )
    options = {"gradient_accumulation_steps": 2, "teacher_batch_size": rows_at_once}
    context = {"trainer_options": {}, "dataset": tiny.questions(privileged_context="Answer with b.")}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options, **context)
    batch = fixed_batch(trainer)
    assert forwards == [rows_at_once] * (8 // rows_at_once) + ([8 % rows_at_once] if 8 % rows_at_once else [])
    ahead = loss_and_gradient(trainer, batch)
    assert len(forwards) == -(-8 // rows_at_once)  # none for the loss
    trainer.args.teacher_batch_size = None  # with the micro-batch
    torch.testing.assert_close(ahead, loss_and_gradient(trainer, batch), rtol=1e-5, atol=1e-6)


def test_a_run_that_scores_ahead_ends_with_the_same_weights(tmp_path, student_path, teacher_path):
    trained = []
    for options in ({}, {"teacher_batch_size": 3}, {"teacher_offload": "cpu"}):
        steps = {"max_steps": 3, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
        trainer = opd_trainer(tmp_path, student_path, teacher_path, dataset=tiny.questions(16), **steps, **options)
        trainer.train()
        trained.append(trainer.model.lm_head.weight.detach())
    for weight in trained[1:]:  # Adam makes some of a step of 1e-2 of the rounding of a gradient that is nearly 0
        torch.testing.assert_close(weight, trained[0], rtol=1e-4, atol=3e-4)


def test_an_offloaded_teacher_is_moved_for_every_generation_batch_and_moved_back(
    tmp_path, student_path, teacher_path, monkeypatch
):
    moves, move_body = [], model_teacher.move_body
    monkeypatch.setattr(
        model_teacher, "move_body", lambda model, device: moves.append(device) or move_body(model, device)
    )
    trainer = opd_trainer(tmp_path, student_path, teacher_path, teacher_offload="cpu", max_steps=2)
    trainer.teacher.works_on = torch.device("cpu", 0)  # the accelerator's stand-in: another device by name
    trainer.train()
    cpu = torch.device("cpu")
    at_start = [
        cpu,
        cpu,
        cpu,
    ]  # to rest; to the device that was the accelerator's for the check of its logits, and back
    assert moves == [*at_start, *([torch.device("cpu", 0), cpu] * 2)]


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_of_an_offloaded_teacher_stays_where_the_loss_reads_it(tied):
    model = tiny.build_model(tie_word_embeddings=tied)
    moved = {x.data_ptr() for x in model_teacher.body(model)}
    stays = {name for name, x in model.named_parameters(remove_duplicate=False) if x.data_ptr() not in moved}
    assert stays == {"lm_head.weight"} | ({"model.embed_tokens.weight"} if tied else set())
    assert len(list(model.buffers())) > 0
    assert all(x.data_ptr() in moved for x in model.buffers())


@pytest.mark.parametrize("options", [{"teacher_batch_size": 4}, {"teacher_offload": "cpu"}])
@pytest.mark.parametrize(
    ("kind", "lora", "what"),
    [
        ("base", True, "is the student with other adapters"),
        ("live", False, "is the student with other adapters"),
        ("ema", False, "moves with the student"),
    ],
)
def test_a_teacher_without_frozen_weights_of_its_own_is_refused(tmp_path, student_path, options, kind, lora, what):
    with pytest.raises(ValueError, match=f"{next(iter(options))} needs a teacher with frozen weights .* {what}"):
        opsd_trainer(tmp_path, student_path, lora=lora, teacher_model_kind=kind, **options)


def test_a_full_fine_tunings_base_teacher_scores_ahead(tmp_path, student_path):
    trainer = opsd_trainer(tmp_path, student_path, lora=False, teacher_batch_size=2)
    batch = fixed_batch(trainer)
    ahead = loss_and_gradient(trainer, batch)
    trainer.args.teacher_batch_size = None  # with the micro-batch
    torch.testing.assert_close(ahead, loss_and_gradient(trainer, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("version", "works"), [("2.10.0+cu128", False), ("2.11.0", False), ("2.12.0", True)])
def test_a_quantized_teacher_under_fsdp2_needs_a_torch_that_shards_integers(monkeypatch, version, works):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    trainer = SimpleNamespace(
        is_fsdp_enabled=True, is_deepspeed_enabled=False, args=SimpleNamespace(teacher_offload=None)
    )
    if works:
        check_quantized(trainer)
        return
    with pytest.raises(ValueError, match=f"FSDP2 with torch {re.escape(version)}, .* torch 2.12 or later, use ZeRO-2"):
        check_quantized(trainer)
