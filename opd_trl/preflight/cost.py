"""What a step costs here: seconds by phase and peak memory, from one micro-batch."""

import dataclasses
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .findings import Finding
from .flight import Flight
from .rollouts import Rollout


@dataclass(frozen=True)
class StepCost:
    """Seconds of one optimizer step in this process, the optimizer itself left out.

    Attributes:
        generation, teacher, student: seconds; `student` is forward, loss and backward.
        completions: of a step.
        peak_gib: of the accelerator, or of this process where there is none.
        device: its name.
    """

    generation: float
    teacher: float
    student: float
    completions: int
    peak_gib: float
    device: str

    @property
    def total(self) -> float:
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


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, its kernels included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_gib(device: torch.device) -> float:
    """Most memory so far: of the accelerator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cost(flight: Flight) -> None:
    """Seconds by phase and memory."""
    generated = sum(len(rollout.rows) for rollout in flight.rollouts)
    found = measure_step(
        flight.trainer, flight.rollouts[0], generation_seconds=flight.generation_seconds, generated=generated
    )
    flight.details["cost"] = dataclasses.asdict(found) | {"total": found.total, "teacher_share": found.teacher_share}
    figure = (
        f"{found.total:.1f} s for {found.completions} completions: generation {found.generation:.1f}, teacher "
        f"{found.teacher:.1f}, student {found.student:.1f}; peak {found.peak_gib:.1f} GiB"
    )
    sentence = f"The teacher takes {found.teacher_share:.0%} of a step (one process, {found.device}, no optimizer)."
    flight.findings.append(Finding("cost", "a step", "ok", figure, sentence, value=found.total))
