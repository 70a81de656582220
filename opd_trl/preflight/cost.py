"""What does a step cost on this machine? Seconds by phase and peak memory, measured on one micro-batch."""

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from ..trainers.looks.rollouts import Rollout
from .findings import Finding
from .state import Preflight


def run(preflight: Preflight) -> list[Finding]:
    """Measure a step. The finding is always ok: what is too slow only the user knows."""
    cost = measure_step(
        preflight.trainer,
        preflight.rollouts[0],
        generation_seconds=preflight.generation_seconds,
        generated=preflight.num_completions,
    )
    teachers = preflight.trainer.teachers.values()
    preflight.details["cost"] = asdict(cost) | {
        "total": cost.total,
        "teacher_share": cost.teacher_share,
        "is_served": any(part.is_elsewhere for teacher in teachers for part in teacher.parts),
    }
    figure = (
        f"{cost.total:.1f} s for {cost.completions} completions: generation {cost.generation:.1f}, teacher "
        f"{cost.teacher:.1f}, student {cost.student:.1f}; peak {cost.peak_gib:.1f} GiB"
    )
    sentence = f"The teacher takes {cost.teacher_share:.0%} of a step (one process, {cost.device}, no optimizer)."
    return [Finding("a step", "ok", figure, sentence, value=cost.total)]


@dataclass(frozen=True)
class StepCost:
    """Seconds of one optimizer step in this process, the optimizer itself left out.

    Attributes:
        generation, teacher, student: seconds; `student` is forward, loss and backward.
        completions: how many a step trains on.
        peak_gib: most memory so far, of the accelerator, or of this process where there is none.
        device: name of the accelerator, or `CPU`.
    """

    generation: float
    teacher: float
    student: float
    completions: int
    peak_gib: float
    device: str

    @property
    def total(self) -> float:
        """Seconds of the whole step, all phases."""
        return self.generation + self.teacher + self.student

    @property
    def teacher_share(self) -> float:
        """The teacher's share of the step."""
        return self.teacher / self.total if self.total else 0.0


def measure_step(trainer, rollout: Rollout, *, generation_seconds: float, generated: int) -> StepCost:
    """Run one micro-batch forward and backward, and scale it to an optimizer step.

    Args:
        trainer: an OPDTrainer that does not train.
        rollout: a micro-batch.
        generation_seconds, generated: what the rollouts have taken, and how many completions they are.
    """
    args, device = trainer.args, trainer.accelerator.device
    # The loss is divided by it, and only `train()` sets it.
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    completions = args.per_device_train_batch_size * args.gradient_accumulation_steps
    share = completions / max(1, len(rollout.rows))

    ahead = any(teacher.scores_ahead(trainer) for teacher in trainer.teachers.values())

    def step() -> None:
        trainer.batch_loss(rollout.batch).backward()
        trainer.model.zero_grad(set_to_none=True)

    trainer.model.train()
    step()  # the first one also fills caches
    whole = seconds(step, device)
    trainer.model.eval()
    with torch.no_grad():
        in_step = seconds(lambda: trainer.teacher_scores(trainer.model, rollout.batch), device)
        before = seconds(lambda: trainer.score_ahead(rollout.batch), device) if ahead else 0.0
    generation = generation_seconds * completions / max(1, generated)
    return StepCost(
        generation=max(0.0, generation - before * share),
        teacher=(in_step + before) * share,
        student=max(0.0, whole - in_step) * share,
        completions=completions,
        peak_gib=peak_gib(device),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
    )


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, with the kernels that it starts on an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_gib(device: torch.device) -> float:
    """Most memory so far, of the accelerator, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
