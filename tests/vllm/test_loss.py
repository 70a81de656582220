"""A trainer whose teacher vLLM serves has the loss and the gradient of one with the same teacher in process."""

import pytest
import torch

from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer


TOLERANCE = 1e-3


def loss_and_gradient(trainer):
    """Of one batch whose completions depend on the seed alone."""
    torch.manual_seed(0)
    batch = fixed_batch(trainer)
    loss = trainer._compute_loss(trainer.model, batch)
    (gradient,) = torch.autograd.grad(loss, trainer.model.lm_head.weight)
    return batch, loss.item(), gradient


@pytest.mark.parametrize(
    "options",
    [
        {"loss_support": "teacher"},
        {"loss_support": "teacher", "divergence": "forward_kl", "loss_tail": "bucket", "loss_top_k": 20},
        {"loss_support": "teacher", "teacher_batch_size": 1, "teacher_server_concurrency": 4},
        {"loss_support": "intersection", "loss_top_k": 20},
        {"loss_support": "intersection", "divergence": "jsd", "loss_tail": "drop"},
        {"loss_support": "sampled"},
        {"loss_support": "teacher", "privileged_context": "Answer with b."},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_loss_is_that_of_the_same_teacher_in_process(tmp_path, student_path, teacher_path, url, measured, options):
    served = opd_trainer(tmp_path, student_path, None, teacher_server_url=url, **options)
    in_process = opd_trainer(tmp_path, student_path, teacher_path, **options)
    batch, loss, gradient = loss_and_gradient(served)
    expected_batch, expected, expected_gradient = loss_and_gradient(in_process)
    assert batch["completion_ids"].tolist() == expected_batch["completion_ids"].tolist()
    assert expected_gradient.abs().max() > 1e-3

    difference = (gradient - expected_gradient).abs().max().item()
    name = ", ".join(map(str, options.values()))
    measured(f"served against in process, {name}: loss {abs(loss - expected):.1e}, gradient {difference:.1e}")
    assert loss == pytest.approx(expected, abs=TOLERANCE)
    assert difference < TOLERANCE


def test_a_step_of_training_moves_the_weights_as_with_the_teacher_in_process(
    tmp_path, student_path, teacher_path, url
):
    """Two optimizer steps of two micro-batches each: scores that were fetched ahead reach the right rows."""
    trained = []
    for teacher, server in ((None, url), (teacher_path, None)):
        trainer = opd_trainer(
            tmp_path,
            student_path,
            teacher,
            teacher_server_url=server,
            loss_support="teacher",
            gradient_accumulation_steps=2,
            per_device_train_batch_size=2,
            max_steps=2,
            optim="sgd",
            dataset=tiny.questions(16),
        )
        trainer.train()
        trained.append({name: x.detach().clone() for name, x in trainer.model.named_parameters()})
    start = dict(tiny.build_model().named_parameters())
    assert any((x - start[name]).abs().max() > 1e-3 for name, x in trained[0].items())
    for name, x in trained[0].items():
        torch.testing.assert_close(x, trained[1][name], rtol=0, atol=1e-4)
