"""A student learns to add from a teacher that vLLM serves, without ever seeing a right answer."""

import pytest
from transformers import AutoModelForCausalLM

from opd_trl import OPDConfig, OPDTrainer
from opd_trl.teachers.server import PROBE_TEXT
from tests import tiny
from tests.trainers.build import settings
from tests.vllm import addition
from tests.vllm.server import POOLING, vllm_server


@pytest.fixture(scope="module", params=["completions", "pooling"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, kind):
    """The teacher, and the student that is an early state of it. They read plain text too where a pooled one must."""
    folder = tmp_path_factory.mktemp("addition")
    text = PROBE_TEXT if kind == "pooling" else None
    addition.train_teacher(folder / "teacher", folder / "student", text=text)
    return folder


def test_a_student_of_a_served_teacher_learns_to_add(tmp_path, folder, measured, kind):
    """100 steps of 64 sums. Forward KL on the teacher's 16 most probable of 103 ids; pooled, on the student's."""
    tokenizer = tiny.build_tokenizer()
    teacher = addition.accuracy(AutoModelForCausalLM.from_pretrained(folder / "teacher"), tokenizer)
    flags = POOLING if kind == "pooling" else []
    with vllm_server(str(folder / "teacher"), tmp_path / "server.log", *flags) as url:
        options = {
            "teacher_server_url": url,
            "teacher_model_name_or_path": str(folder / "teacher") if kind == "pooling" else None,
            "loss_support": "student" if kind == "pooling" else "teacher",
            "loss_top_k": 16,
            "divergence": "forward_kl",
            "max_steps": 100,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 5,
            "per_device_train_batch_size": 64,
            "max_completion_length": addition.MAX_ANSWER + 4,
            "logging_steps": 20,
        }
        args = OPDConfig(**settings(tmp_path, **options))
        trainer = OPDTrainer(str(folder / "student"), args=args, train_dataset=addition.dataset())
        before = addition.accuracy(trainer.model, tokenizer)
        seconds = trainer.train().metrics["train_runtime"]
    after = addition.accuracy(trainer.model, tokenizer)
    measured(
        f"addition, {kind}, held-out accuracy: teacher {teacher:.3f}, student {before:.3f} -> {after:.3f} in "
        f"{args.max_steps} steps, {seconds:.0f} s"
    )
    assert teacher > 0.9
    assert before < 0.3
    assert after > max(0.5, before + 0.3)
