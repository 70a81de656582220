"""Where the time and the memory of a trainer's step go: the same marks in every trainer, ours and TRL's.

The calls that all of them make are counted: `generate`, the forward of a decoder (with a gradient it is the student's,
without one the teacher's), `compute_loss`, `accelerator.backward`, clipping and the optimizer.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lines import PHASES
from measure import peak_memory, start_of_memory
from transformers import GenerationMixin, TrainerCallback

from opd_trl.trainers.phases import STUDENT, PhaseClock


# The clock's name of the time outside of all others, and that of the student's forward.
REST, FORWARD = STUDENT, "forward"


# What is counted anew in each step.
OF_A_STEP = ("extra_mib", "real_tokens", "real_tokens_of_teacher", "computed_by_student", "computed_by_teacher")


class StepClock(TrainerCallback):
    """Seconds and MiB of each step.

    Args:
        trainer: that is watched.
        send: called at the end of each step, with `phases` (seconds), `resident_mib` (what lived before the first
            step), `peak_mib` (until now), `extra_mib` (the peak of loss and backward of a micro-batch beyond what
            lived before or lives on, whichever is more: gradients stay, and are the same in all trainers), the padded
            lengths of the student's and the teacher's prompts, tokens of the step that are no padding, for the student
            and for the teacher, and how many went through the forwards of both.
        limit_mib: of the growth, on a CPU, where nothing runs out.
    """

    def __init__(self, trainer, send: Callable[[dict[str, Any]], None], limit_mib: int | None):
        self.trainer, self.send, self.limit_mib = trainer, send, limit_mib
        self.clock, self.device = PhaseClock(trainer.accelerator.device), trainer.accelerator.device.type
        self.seen: dict[str, int] = {"resident_mib": start_of_memory(self.device), "peak_mib": 0} | dict.fromkeys(
            OF_A_STEP, 0
        )
        self._before, self._step = 0, ExitStack()
        self._compute_loss = self.counted("loss", trainer.compute_loss)
        self._backward = self.counted("backward", trainer.accelerator.backward)
        trainer.compute_loss, trainer.accelerator.backward = self.compute_loss, self.backward
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
            phase = FORWARD if torch.is_grad_enabled() else "teacher"
            self.seen[f"computed_by_{'student' if phase == FORWARD else phase}"] += kwargs["input_ids"].numel()
            with self.clock.within(phase):
                return function(*args, **kwargs)

        return call

    def compute_loss(self, model, inputs, *args, **kwargs):
        """The trainer's; the batch was generated before it."""
        self.seen["prompt_tokens"] = inputs["prompt_ids"].size(1)
        if "teacher_input_ids" in inputs:
            self.seen["teacher_prompt_tokens"] = inputs["teacher_input_ids"].size(1) - inputs["completion_ids"].size(1)
        elif "teacher_prompt_ids" in inputs:
            self.seen["teacher_prompt_tokens"] = inputs["teacher_prompt_ids"].size(1)
        prompt, completion = (int(inputs[f"{name}_mask"].sum()) for name in ("prompt", "completion"))
        self.seen["real_tokens"] += prompt + completion
        if "teacher_attention_mask" in inputs:
            self.seen["real_tokens_of_teacher"] += int(inputs["teacher_attention_mask"].sum())
        else:
            prompt = int(inputs.get("teacher_prompt_mask", inputs["prompt_mask"]).sum())
            self.seen["real_tokens_of_teacher"] += prompt + completion
        self.look("peak_mib", peak_memory(self.device))
        self._before = start_of_memory(self.device)
        return self._compute_loss(model, inputs, *args, **kwargs)

    def backward(self, *args, **kwargs):
        """The accelerator's."""
        self._backward(*args, **kwargs)
        peak = peak_memory(self.device)
        self.look("peak_mib", peak)
        self.look("extra_mib", peak - max(self._before, start_of_memory(self.device)))

    def look(self, name: str, mib: int) -> None:
        """Raise a figure."""
        self.seen[name] = max(self.seen[name], mib)

    def on_train_begin(self, args, state, control, **kwargs):
        optimizer = self.trainer.optimizer
        optimizer.step = self.counted("optimizer", optimizer.step)

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen |= dict.fromkeys(OF_A_STEP, 0)
        self._step.enter_context(self.clock.within(REST))

    def on_step_end(self, args, state, control, **kwargs):
        self._step.close()
        self.look("peak_mib", peak_memory(self.device))
        found, names = self.clock.seconds(), {"student": FORWARD, "rest": REST}
        self.send({"phases": {phase: found.get(names.get(phase, phase), 0.0) for phase in PHASES}, **self.seen})
        if self.device == "cpu" and self.limit_mib is not None:
            growth = self.seen["peak_mib"] - self.seen["resident_mib"]
            if growth > self.limit_mib:
                raise torch.OutOfMemoryError(f"{growth} MiB are more than {self.limit_mib}")


@contextmanager
def phases_of(trainer, generate: Callable | None, send: Callable, limit_mib: int | None) -> Iterator[None]:
    """Watch what the trainer does inside; optionally with another `generate` for every model."""
    clock = StepClock(trainer, send, limit_mib)
    decoder = type(trainer.accelerator.unwrap_model(trainer.model).get_decoder())
    old_generate, old_forward = GenerationMixin.generate, decoder.forward
    GenerationMixin.generate = clock.counted("generation", generate or old_generate)
    decoder.forward = clock.forward(old_forward)
    try:
        yield
    finally:
        GenerationMixin.generate, decoder.forward = old_generate, old_forward
