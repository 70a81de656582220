"""Weights of tokens in a trainer, against the models' own logits; what they do not fit is refused."""

import math

import pytest
import torch

from opd_trl import OPDConfig
from opd_trl.losses import support_divergence
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer
from tests.trainers.test_loss import dense_log_probs


def at(log_probs, batch):
    return log_probs.gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)


def both(trainer, teacher, batch):
    """log p and log q of every next token, by the models' own forwards."""
    prompt = batch["prompt_ids"], batch["prompt_mask"]
    return dense_log_probs(trainer.model, *prompt, batch), dense_log_probs(teacher, *prompt, batch).detach()


def early(a, kept, gamma=0.5):
    size = a.abs() * kept
    return 1 + gamma * (1 - (size.cumsum(-1) - size) / size.sum(-1, keepdim=True).clamp(min=1e-30))


def check(trainer, batch, per_token):
    loss = trainer._compute_loss(trainer.model, batch)
    expected = (per_token * batch["loss_mask"]).sum() / batch["loss_mask"].sum()
    weight = trainer.model.lm_head.weight
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(x, weight)[0] for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("support", ["sampled", "student"])
def test_iw_opd_weighs_a_row_by_what_counts_of_it(tmp_path, student_path, teacher_path, support):
    options = {"loss_position_weight": "iw_opd", "loss_support": support, "num_loss_tokens_to_skip": 2}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    batch = fixed_batch(trainer)
    log_p, log_q = both(trainer, trainer.teacher.model, batch)
    a = at(log_q - log_p, batch).detach()
    w = early(a, batch["loss_mask"])
    kept = batch["loss_mask"].bool()
    assert (early(a, batch["completion_mask"]) - w)[kept].abs().max() > 0.01  # the skipped tokens would have counted
    ids = log_p.topk(5, dim=-1).indices
    values = support_divergence(log_p.gather(-1, ids), log_q.gather(-1, ids))
    check(trainer, batch, w * (-a * at(log_p, batch) if support == "sampled" else values))
    logged = trainer._metrics["train"]["distillation/token_weight"][0]
    assert logged == pytest.approx(w[kept].mean().item(), abs=1e-5)


@pytest.mark.parametrize("outside", ["mask", "clip"])
def test_the_trust_region_bounds_the_advantage(tmp_path, student_path, teacher_path, outside):
    options = {"method": "trust_region", "loss_trust_ratio": 0.9, "loss_trust_outside": outside}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    batch = fixed_batch(trainer)
    log_p, log_q = both(trainer, trainer.teacher.model, batch)
    a = at(log_q - log_p, batch).detach()
    bounded = a.clamp(min=math.log(0.9)) if outside == "clip" else a * (a >= math.log(0.9))
    assert (bounded != a)[batch["loss_mask"].bool()].any()
    check(trainer, batch, -bounded * at(log_p, batch))


def test_each_row_is_weighed_by_its_own_teacher(tmp_path, student_path, teacher_path):
    other = tiny.save(tmp_path / "other", seed=7)
    dataset = tiny.questions().add_column("teacher", ["one", "two"] * (len(tiny.questions()) // 2))
    teachers = {"one": teacher_path, "two": other}
    options = {"loss_position_weight": "iw_opd", "loss_support": "sampled"}
    trainer = opd_trainer(tmp_path, student_path, teachers, dataset=dataset, **options)
    batch = fixed_batch(trainer)
    log_p, first = both(trainer, trainer.teachers["one"].model, batch)
    _, second = both(trainer, trainer.teachers["two"].model, batch)
    log_q = torch.where(batch["teacher_index"][:, None, None] == 0, first, second)
    a = at(log_q - log_p, batch).detach()
    assert (at(first - second, batch).abs() > 0.01).any()
    check(trainer, batch, -early(a, batch["loss_mask"]) * a * at(log_p, batch))


def test_the_gradient_does_not_depend_on_how_the_batch_is_split(tmp_path, student_path, teacher_path):
    gradients, batch = [], None
    for size in (4, 2, 1):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        trainer = opd_trainer(tmp_path, student_path, teacher_path, method="iw_opd", **options)
        batch = batch or fixed_batch(trainer)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 4 // size
        for start in range(0, 4, size):
            part = {k: v[start : start + size] if v.ndim else v for k, v in batch.items()}
            trainer._compute_loss(trainer.model, part).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


def test_a_batch_without_a_kept_token_has_no_weight_and_a_zero_loss(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, method="iw_opd", num_loss_tokens_to_skip=100)
    loss = trainer._compute_loss(trainer.model, fixed_batch(trainer))
    loss.backward()
    assert loss == 0
    assert "distillation/token_weight" not in trainer._metrics["train"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_position_weight": "trust_region"}, r"bounds the advantage .* Set loss_support='sampled'"),
        ({"loss_position_weight": "early"}, "loss_position_weight must be one of None, iw_opd, trust_region"),
        ({"loss_position_weight": "iw_opd", "loss_position_gamma": -0.1}, "loss_position_gamma must be >= 0"),
        ({"method": "trust_region", "loss_trust_ratio": 1.5}, r"must lie inside \(0, 1\), got 1.5"),
        ({"method": "trust_region", "loss_trust_outside": "drop"}, "loss_trust_outside must be one of mask, clip"),
    ],
)
def test_an_impossible_weight_is_refused_with_the_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        OPDConfig(output_dir="out", use_cpu=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_position_gamma": 0.7}, "loss_position_weight: iw_opd"),
        ({"method": "iw_opd", "loss_trust_ratio": 0.2}, "loss_position_weight: trust_region"),
    ],
)
def test_an_option_of_another_weight_is_said_to_have_no_effect(options, message, caplog):
    OPDConfig(output_dir="out", use_cpu=True, **options)
    assert f"has no effect here. It needs {message}." in caplog.text
