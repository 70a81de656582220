"""Where the time of a trainer's step goes: the same marks in every trainer, ours and TRL's.

The calls that all of them make are counted: `generate`, the forward of a decoder (with a gradient it is the student's,
without one the teacher's), `compute_loss`, `accelerator.backward`, clipping and the optimizer.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from gpu_lines import PHASES
from transformers import GenerationMixin, TrainerCallback

from opd_trl.trainers.phases import STUDENT, PhaseClock


# The clock's name of the time outside of all others, and that of the student's forward.
REST, FORWARD = STUDENT, "forward"


class StepClock(TrainerCallback):
    """Seconds of each phase, step by step.

    Attributes:
        steps: one entry for each finished step.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.clock = PhaseClock(trainer.accelerator.device)
        self.steps: list[dict[str, float]] = []
        self._step = ExitStack()
        trainer.compute_loss = self.counted("loss", trainer.compute_loss)
        trainer.accelerator.backward = self.counted("backward", trainer.accelerator.backward)
        trainer.accelerator.clip_grad_norm_ = self.counted("optimizer", trainer.accelerator.clip_grad_norm_)
        trainer.add_callback(self)

    def counted(self, phase: str, function: Callable) -> Callable:
        """The function, its time counted as a phase."""

        @functools.wraps(function)
        def call(*args, **kwargs):
            with self.clock.within(phase):
                return function(*args, **kwargs)

        return call

    def forward(self, function: Callable) -> Callable:
        """A decoder's forward; one of generation stays generation."""

        @functools.wraps(function)
        def call(*args, **kwargs):
            if self.clock.phase == "generation":
                return function(*args, **kwargs)
            with self.clock.within(FORWARD if torch.is_grad_enabled() else "teacher"):
                return function(*args, **kwargs)

        return call

    def on_train_begin(self, args, state, control, **kwargs):
        optimizer = self.trainer.optimizer
        optimizer.step = self.counted("optimizer", optimizer.step)

    def on_step_begin(self, args, state, control, **kwargs):
        self._step.enter_context(self.clock.within(REST))

    def on_step_end(self, args, state, control, **kwargs):
        self._step.close()
        found = self.clock.seconds()
        names = {"student": FORWARD, "rest": REST}
        self.steps.append({phase: found.get(names.get(phase, phase), 0.0) for phase in PHASES})


@contextmanager
def phases_of(trainer, generate: Callable | None) -> Iterator[StepClock]:
    """Count the phases of what the trainer does inside; optionally with another `generate` for every model."""
    clock = StepClock(trainer)
    decoder = type(trainer.accelerator.unwrap_model(trainer.model).get_decoder())
    old_generate, old_forward = GenerationMixin.generate, decoder.forward
    GenerationMixin.generate = clock.counted("generation", generate or old_generate)
    decoder.forward = clock.forward(old_forward)
    try:
        yield clock
    finally:
        GenerationMixin.generate, decoder.forward = old_generate, old_forward
