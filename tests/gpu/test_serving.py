"""`opd-trl serve-teacher` on the device, with the hidden states of a bfloat16 model."""

import os

import pytest
import torch

from tests import tiny
from tests.gpu.near import error
from tests.gpu.runs import rollout
from tests.trainers.build import fixed_batch, opd_trainer


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("teacher"), seed=1, hidden_size=48)


@pytest.fixture(scope="module")
def url(place, teacher):
    pytest.importorskip("fastapi", reason="opd-trl serve-teacher needs fastapi")
    pytest.importorskip("uvicorn", reason="opd-trl serve-teacher needs uvicorn")
    from tests.serving.server import serve

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0") if place.on_cuda else ""
    flags = ("--device", place.device.type, "--dtype", "bfloat16")
    with serve(teacher, *flags, env={"CUDA_VISIBLE_DEVICES": visible}) as url:
        yield url


def loss_and_gradient(place, folder, student: str, teacher: str, **options):
    options |= {"loss_top_k": 40, "trainer_options": {"rollout_func": rollout}, **place.training}
    trainer = opd_trainer(folder, student, teacher, **options)
    batch = fixed_batch(trainer)
    loss = trainer._compute_loss(trainer.model, batch)
    gradient = torch.cat([x.flatten() for x in torch.autograd.grad(loss, list(trainer.model.parameters()))])
    return trainer, loss.detach().cpu().double(), gradient.cpu().double()


@pytest.mark.parametrize("support", ["student", "full"])
def test_a_served_teacher_gives_the_loss_and_the_gradient_of_one_in_this_process(
    place, note, tmp_path, student_path, teacher, url, support
):
    in_bfloat16 = {"teacher_model_init_kwargs": {"dtype": "bfloat16"}}
    options = {"loss_support": support}
    _, expected, expected_gradient = loss_and_gradient(
        place, tmp_path / "here", student_path, teacher, **options, **in_bfloat16
    )
    trainer, loss, gradient = loss_and_gradient(place, tmp_path / "there", student_path, url, **options)
    head = trainer.teacher.head.weight
    assert (head.device.type, head.dtype) == (place.device.type, torch.bfloat16)
    errors = {"loss": error(loss, expected), "gradient": error(gradient, expected_gradient)}
    note(f"a served teacher, {support}", torch.bfloat16, **errors)
    # The server reads every sequence without padding: other roundings to 8 bits.
    assert errors["loss"] < 0.02
    assert errors["gradient"] < 0.05
