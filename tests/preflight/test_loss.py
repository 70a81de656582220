"""`verify-loss` on real trainers: the same rollouts, the same gradients as training."""

import pytest
import torch

from opd_trl.preflight.loss import check_loss
from opd_trl.trainers.looks.rollouts import only_block, roll_out, take_rows
from tests import tiny
from tests.trainers.build import opd_trainer, opsd_trainer


def checked(trainer, count=6, **options):
    rollouts = roll_out(trainer, take_rows(trainer.train_dataset, count, seed=0))
    return rollouts, check_loss(trainer, rollouts, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"loss_tail": "bucket", "loss_support": "union"}, {"loss_support": "full", "loss_temperature": 1.7}],
)
def test_the_loss_that_is_checked_is_the_one_that_trains(tmp_path, student_path, teacher_path, options):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    rollouts, report = checked(trainer, 4)
    with torch.no_grad():
        loss = trainer.batch_loss(rollouts[0].batch)
    assert report.rows[0].loss == pytest.approx(loss.item(), rel=1e-4)
    assert report.rows[0].is_stationary_at_teacher
    assert report.num_tokens == rollouts[0].kept.sum()
    assert report.block[0] == "model.layers.1"


def test_the_exact_gradient_of_the_block_is_that_of_the_models_own_logits(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, loss_support="full")
    _, report = checked(trainer)
    full = {(row.name, row.top_k): row for row in report.rows}["whole vocabulary", None]
    assert full.block_cosine == pytest.approx(1.0, abs=1e-5)
    plain = {(row.name, row.top_k): row for row in report.rows}["plain", 1]
    assert plain.block_cosine < 0.99


def test_a_lora_student_with_a_privileged_context_is_checked_on_its_adapter(tmp_path, student_path):
    trainer = opsd_trainer(tmp_path, student_path)
    _, report = checked(trainer, top_ks=[3])
    assert "layers.1" in report.block[0]
    assert report.exact_loss > 0
    assert (report.twin_loss, report.twin_gradient) == (0.0, 0.0)
    assert [(row.name, row.top_k) for row in report.rows][1:4] == [
        ("plain", 3),
        ("stop-gradient", 3),
        ("renormalised", 3),
    ]


def test_few_positions_are_compared_where_there_are_many(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, max_completion_length=16)
    rollouts, report = checked(trainer, 8, max_tokens=20, top_ks=[5])
    assert sum(int(rollout.kept.sum()) for rollout in rollouts) > 40
    assert 18 <= report.num_tokens <= 22


def test_several_teachers_are_checked_each_on_its_own_rows(tmp_path, student_path, teacher_path):
    dataset = tiny.questions(4, teacher=["near", "far", "near", "far"])
    trainer = opd_trainer(tmp_path, student_path, {"near": student_path, "far": teacher_path}, dataset=dataset)
    rollouts, report = checked(trainer, 4, top_ks=[5])
    assert report.num_tokens == sum(int(rollout.kept.sum()) for rollout in rollouts)
    assert report.exact_loss > 0


def test_gradients_reach_the_last_layer_alone_and_everything_afterwards(tmp_path, student_path, teacher_path):
    model = opd_trainer(tmp_path, student_path, teacher_path).model
    with only_block(model) as block:
        assert block
        assert {name for name, x in model.named_parameters() if x.requires_grad} == block.keys()
        assert all(".1." in name for name in block)
    assert all(x.requires_grad for x in model.parameters())


def test_rows_are_drawn_without_replacement_and_a_stream_gives_its_first():
    dataset = tiny.questions(8)
    rows = take_rows(dataset, 5, seed=1)
    assert len({row["prompt"][0]["content"] for row in rows}) == 5
    assert rows != take_rows(dataset, 5, seed=2)
    assert len(take_rows(dataset, 100, seed=0)) == 8
    assert take_rows(dataset.to_iterable_dataset(), 2, seed=0) == [dataset[0], dataset[1]]
