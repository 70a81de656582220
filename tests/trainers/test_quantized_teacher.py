"""A teacher in 8 or 4 bits by `teacher_model_init_kwargs`, bitsandbytes on the CPU: never silently wrong."""

import importlib.util
import json

import pytest
import torch

from opd_trl.teachers.model_teacher import FSDP_SHARDS_INTEGERS
from tests import tiny
from tests.distributed.launch import deviation, needs_deepspeed, run_job
from tests.serving.server import serve
from tests.trainers.build import fixed_batch, opd_trainer


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install '.[quantization]'",
)
EIGHT_BITS = {"quantization_config": {"load_in_8bit": True}}
FOUR_BITS = {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory) -> str:
    """Rows of 64, the smallest block of four-bit weights."""
    return tiny.save(tmp_path_factory.mktemp("teacher"), seed=1, hidden_size=64, head_dim=16)


@pytest.mark.parametrize(("init_kwargs", "layer"), [(EIGHT_BITS, "Linear8bitLt"), (FOUR_BITS, "Linear4bit")])
def test_a_quantized_teacher_scores_like_itself_within_its_rounding(
    tmp_path, student_path, teacher_path, init_kwargs, layer
):
    losses = []
    for kwargs in (None, init_kwargs):
        trainer = opd_trainer(
            tmp_path, student_path, teacher_path, loss_support="full", teacher_model_init_kwargs=kwargs
        )
        torch.manual_seed(0)
        losses.append(trainer._compute_loss(trainer.model, fixed_batch(trainer)).item())
    assert type(trainer.teacher.model.model.layers[0].mlp.up_proj).__name__ == layer
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    assert losses[1] != losses[0]
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_quantized_teacher_can_be_served(tmp_path, student_path, teacher_path):
    losses = []
    with serve(teacher_path, "--model-init-kwargs", json.dumps(FOUR_BITS)) as url:
        for teacher, kwargs in ((teacher_path, FOUR_BITS), (url, None)):
            trainer = opd_trainer(tmp_path, student_path, teacher, teacher_model_init_kwargs=kwargs)
            torch.manual_seed(0)
            losses.append(trainer._compute_loss(trainer.model, fixed_batch(trainer)).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # its 4-bit products depend on the batch


def test_a_quantized_teacher_is_not_offloaded(tmp_path, student_path, teacher_path):
    with pytest.raises(ValueError, match="teacher_offload with a quantized teacher"):
        opd_trainer(tmp_path, student_path, teacher_path, teacher_model_init_kwargs=FOUR_BITS, teacher_offload="cpu")


shards_integers = pytest.mark.skipif(
    torch.__version__ < FSDP_SHARDS_INTEGERS,
    reason=f"FSDP2 shards packed weights from torch {FSDP_SHARDS_INTEGERS} on",
)


@pytest.mark.parametrize(
    "engine", [pytest.param("FSDP2", marks=shards_integers), pytest.param("ZeRO-2", marks=needs_deepspeed)]
)
def test_an_engine_trains_with_a_quantized_teacher_as_one_process(tmp_path, student_path, teacher_path, engine):
    setting = {"kind": "opd", "student": student_path, "teacher": teacher_path}
    setting["options"] = {"teacher_model_init_kwargs": FOUR_BITS}
    reference = run_job("1 process", tmp_path / "reference", per_device=8, accumulate=1, **setting)
    outcome = run_job(engine, tmp_path / "engine", per_device=4, accumulate=1, **setting)
    assert max(deviation(outcome, reference).values()) < 1e-5


@needs_deepspeed
def test_zero_3_refuses_a_quantized_teacher(tmp_path, student_path, teacher_path):
    setting = {"kind": "opd", "student": student_path, "teacher": teacher_path}
    setting["options"] = {"teacher_model_init_kwargs": FOUR_BITS}
    with pytest.raises(RuntimeError, match="a quantized teacher under ZeRO-3"):
        run_job("ZeRO-3", tmp_path / "out", per_device=4, accumulate=1, **setting)
