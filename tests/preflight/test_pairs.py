"""Both models side by side on the student's text, against both models' own logits."""

import torch

from opd_trl.trainers.looks.pairs import pair_figures
from opd_trl.trainers.looks.rollouts import roll_out, take_rows
from tests.trainers.build import opd_trainer
from tests.trainers.test_loss import dense_log_probs


def rolled(trainer, count=6):
    return roll_out(trainer, take_rows(trainer.train_dataset, count, seed=0))


def test_the_figures_are_those_of_both_models_own_logits(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, loss_temperature=1.4)
    (rollout,) = rolled(trainer, 4)
    figures, batch, kept = pair_figures(trainer, [rollout]), rollout.batch, rollout.kept
    with torch.no_grad():
        logs = [
            dense_log_probs(model, batch["prompt_ids"], batch["prompt_mask"], batch, 1.4)[kept]
            for model in (trainer.model, trainer.teacher.model)
        ]
    (p, q), (student, teacher) = (x.exp() for x in logs), logs
    top = student.topk(5, dim=-1).indices
    torch.testing.assert_close(figures.reverse_kl, (p * (student - teacher)).sum(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(figures.forward_kl, (q * (teacher - student)).sum(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(figures.student_entropy, -(p * student).sum(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(figures.teacher_entropy, -(q * teacher).sum(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(figures.outside, 1 - q.gather(-1, top).sum(-1), rtol=1e-4, atol=1e-5)
    both = torch.stack(
        [torch.isin(a, b).float().mean() for a, b in zip(top, teacher.topk(5, dim=-1).indices, strict=True)]
    )
    torch.testing.assert_close(figures.overlap, both)


def test_places_and_quarters_are_counted_within_each_completion(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, num_loss_tokens_to_skip=2)
    (rollout,) = rolled(trainer, 4)
    figures, start = pair_figures(trainer, [rollout]), 0
    for kept in rollout.kept:
        n = int(kept.sum())
        assert figures.place[start : start + n].tolist() == list(range(2, 2 + n))
        assert figures.quarter[start : start + n].tolist() == [4 * i // n for i in range(n)]
        start += n
    assert start == len(figures.place)
    assert len(figures.by_quarter("overlap")) == 4
