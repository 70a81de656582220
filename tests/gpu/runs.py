"""Short runs of tiny trainers whose completions are given, so that two devices learn from the same tokens."""

from dataclasses import dataclass

import torch
from peft import get_peft_model
from torch import Tensor

from tests import tiny
from tests.gpu.near import error
from tests.trainers.build import lora_config, opd_trainer, opsd_trainer
from tests.trainers.test_opd import count_forwards


STEPS, MICRO_BATCHES = 3, 2
DIVERGENCE = "distillation/per_token_divergence"
# By name: which trainer, and its options. `full` and `lora` are how the student is trained.
KINDS = {
    "opd full": {},
    "opd lora": {},
    "opd full, 16-bit weights": {},
    "opd full, tail bucket": {"loss_tail": "bucket"},
    "base full": {"teacher_model_kind": "base"},
    "base lora": {"teacher_model_kind": "base"},
    "ema full": {"teacher_model_kind": "ema", "teacher_update_rate": 0.25},
    "ema lora": {"teacher_model_kind": "ema", "teacher_update_rate": 0.25},
}


def rollout(prompts, trainer) -> dict:
    """Completions of 3 to 8 tokens that depend on the step and the row alone."""
    ids, step = trainer._tokenize_prompts(prompts)[0], trainer.state.global_step
    completions = [
        [3 + (17 * row + 29 * step + 5 * t * t) % 100 for t in range(3 + row % 6)] for row in range(len(ids))
    ]
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}


def build(kind: str, folder, **options):
    """The trainer of a kind; its models are built on the CPU, so that every device starts from the same weights."""
    student, is_lora = tiny.build_model(), "lora" in kind
    if "16-bit" in kind:
        student = student.to(torch.bfloat16)
    if is_lora:
        torch.manual_seed(0)
        student = get_peft_model(student, lora_config())
    options = {
        "max_steps": STEPS,
        "loss_top_k": 40,
        # Its steps are proportional to the gradient; Adam's first ones are signs, which rounding turns.
        "optim": "sgd",
        "learning_rate": 0.1,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "trainer_options": {"rollout_func": rollout},
        **KINDS[kind],
        **options,
    }
    options["trainer_options"] = {"processing_class": tiny.build_tokenizer(), **options["trainer_options"]}
    if "teacher_model_kind" in options:
        return opsd_trainer(folder, student, lora=False, **options)
    teacher = tiny.build_model(seed=1, hidden_size=48)
    options["trainer_options"]["teacher_processing_class"] = tiny.build_tokenizer()
    return opd_trainer(folder, student, teacher, **options)


@dataclass(frozen=True)
class Run:
    """What a run leaves.

    Attributes:
        losses: the divergence per token of each step, nats; float64.
        moved: how far the trained parameters of the `student`, and those of a moving `teacher`, have come; as one
            vector each, float64.
        student_forwards, teacher_forwards: of the backbones; a self-teacher that is the student counts with it.
        precision: of autocast.
        devices: on which parameters lie, by type.
    """

    losses: Tensor
    moved: dict[str, Tensor]
    student_forwards: int
    teacher_forwards: int
    precision: str
    devices: set[str]


def train(trainer, **options) -> Run:
    """Train and look at what has changed; `options` are those of `Trainer.train`.

    Accelerate shares device and precision between all trainers of a process, and the last one decides: train each
    before the next one is built.
    """
    models = [trainer.model] if trainer.teacher.model is None else [trainer.model, trainer.teacher.model]
    backbones = [model.get_base_model() if hasattr(model, "peft_config") else model for model in models]
    calls = [count_forwards(model.base_model) for model in backbones]
    before = parameters(trainer)
    trainer.train(**options)
    after = parameters(trainer)
    losses = [line[DIVERGENCE] for line in trainer.state.log_history if DIVERGENCE in line]
    return Run(
        losses=torch.tensor(losses, dtype=torch.float64),
        moved={model: after[model] - before[model] for model in after},
        student_forwards=len(calls[0]),
        teacher_forwards=sum(map(len, calls[1:])),
        precision=trainer.accelerator.mixed_precision,
        devices={x.device.type for model in models for x in model.parameters()},
    )


def parameters(trainer) -> dict[str, Tensor]:
    """What moves in training, as one vector: of the student, of an EMA teacher."""
    teacher, found = trainer.teacher, {"student": [x for x in trainer.model.parameters() if x.requires_grad]}
    if teacher.moves:
        found["teacher"] = [x for x, _ in teacher._pairs()] if teacher.model is None else teacher.model.parameters()
    return {
        model: torch.cat([x.detach().to("cpu", torch.float64).flatten() for x in tensors])
        for model, tensors in found.items()
    }


def distances(found: Run, expected: Run) -> dict[str, float]:
    """Relative errors of the losses, and of how far each model has come."""
    moved = {model: error(found.moved[model], expected.moved[model]) for model in found.moved}
    return {"loss": error(found.losses, expected.losses), **moved}
