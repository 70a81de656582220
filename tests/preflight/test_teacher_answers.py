"""The teacher as the author of answers, and how likely the student finds them; what a look leaves untouched."""

import pytest
import torch

from opd_trl.models.sequences import unpadded
from opd_trl.preflight.cost import measure_step
from opd_trl.preflight.teacher_answers import nll_under_student, teacher_answers
from opd_trl.trainers.looks.rollouts import roll_out, take_rows
from tests import tiny
from tests.trainers.build import opd_trainer, opsd_trainer


def rolled(trainer, count=6):
    return roll_out(trainer, take_rows(trainer.train_dataset, count, seed=0))


def test_a_teacher_that_is_the_student_writes_what_the_student_finds_likely(tmp_path, student_path, teacher_path):
    near = opd_trainer(tmp_path, student_path, student_path)
    far = opd_trainer(tmp_path, student_path, teacher_path)
    nlls = []
    for trainer in (near, far):
        rollouts = rolled(trainer)
        answers = teacher_answers(trainer, rollouts, continue_too=True, seed=0)
        assert len(answers.teacher) == len(answers.continued) == len(answers.student) == 6
        assert all(isinstance(text, str) for text in answers.continued)
        nlls.append(nll_under_student(trainer, rollouts, answers.teacher))
    assert nlls[0] < nlls[1] / 2  # drawn at temperature 0.3


def test_the_nll_is_that_of_the_models_own_logits(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path)
    rollouts = rolled(trainer, 3)
    answers = teacher_answers(trainer, rollouts, continue_too=False, seed=0).teacher
    nats, tokens = 0.0, 0
    for prompt, answer in zip(unpadded(rollouts[0].batch, "prompt"), answers, strict=True):
        ids = trainer.tokenizer.encode(answer.text, add_special_tokens=False)
        ids += [trainer.tokenizer.eos_token_id] * answer.finished
        with torch.no_grad():
            logs = trainer.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        nats -= sum(logs[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids))
        tokens += len(ids)
    assert nll_under_student(trainer, rollouts, answers) == pytest.approx(nats / tokens, rel=1e-4)


def test_a_look_changes_neither_weights_nor_generation_settings(tmp_path, student_path):
    trainer = opsd_trainer(tmp_path, student_path)
    before = {name: x.clone() for name, x in trainer.model.named_parameters()}
    settings = trainer.model.generation_config
    rollouts = rolled(trainer)
    teacher_answers(trainer, rollouts, continue_too=True, seed=0)
    measure_step(trainer, rollouts[0], generation_seconds=1.0, generated=6)
    assert trainer.model.generation_config is settings
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_a_step_is_scaled_from_a_micro_batch(tmp_path, student_path, teacher_path):
    rows = tiny.questions(12)
    trainer = opd_trainer(tmp_path, student_path, teacher_path, dataset=rows, gradient_accumulation_steps=3)
    cost = measure_step(trainer, rolled(trainer, 4)[0], generation_seconds=2.0, generated=4)
    assert cost.completions == 12
    assert cost.generation == pytest.approx(6.0)
    assert 0 < cost.teacher < cost.total
    assert 0 < cost.teacher_share < 1
    assert cost.peak_gib > 0
