"""The control of the study: another loss in the place of the trainer's own."""

import math

import torch

from opd_trl.reproduce.controls import UNLIKELY, ConstantPenaltyTrainer
from tests import tiny
from tests.trainers.build import OPDConfig, fixed_batch, settings
from tests.trainers.test_loss import dense_log_probs


def test_the_constant_penalty_is_the_log_probability_of_what_the_teacher_finds_unlikely(
    tmp_path, student_path, teacher_path
):
    args = OPDConfig(**settings(tmp_path, loss_temperature=1.3))
    trainer = ConstantPenaltyTrainer(
        student_path, args=args, teacher_model=teacher_path, train_dataset=tiny.questions()
    )
    batch = fixed_batch(trainer)
    loss = trainer._compute_loss(trainer.model, batch)
    (gradient,) = torch.autograd.grad(loss, trainer.model.lm_head.weight)

    prompt, ids = (batch["prompt_ids"], batch["prompt_mask"]), batch["completion_ids"].unsqueeze(-1)
    log_p, log_q = (
        dense_log_probs(model, *prompt, batch, 1.3).gather(-1, ids).squeeze(-1)
        for model in (trainer.model, trainer.teacher.model)
    )
    unlikely = (log_q < math.log(UNLIKELY)) * batch["completion_mask"]
    assert 0 < unlikely.sum() < batch["completion_mask"].sum()
    expected = (unlikely * log_p).sum() / batch["completion_mask"].sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    (expected_gradient,) = torch.autograd.grad(expected, trainer.model.lm_head.weight)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
