"""How long a step takes, its generation, teacher and student, without waiting for an accelerator; and a whole run."""

import functools
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import TrainerCallback

from ..models.loading import is_slow_in_bfloat16
from ..reports.words import duration
from .config.config_checks import say_once


#: The phase around all others: what of a training step is neither generation nor the teacher.
STUDENT = "student"


class PhaseClock:
    """Marks on the time line of a device where one phase gives way to another.

    On CUDA a mark is an event in the stream, read when the seconds are asked for; elsewhere it is the clock.

    Args:
        device: that works.
    """

    def __init__(self, device: torch.device):
        self.on_cuda = device.type == "cuda"
        self.phase: str | None = None
        self._marks: list[tuple[float | torch.cuda.Event, str | None]] = []

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """The time of this block, less that of the blocks inside it. Outside of a training step nothing counts."""
        before = self.phase
        if before is None and phase != STUDENT:
            yield
            return
        self._switch(phase)
        try:
            yield
        finally:
            self._switch(before)

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase since they were asked for last."""
        marks, self._marks = self._marks, []
        if self.on_cuda and marks:
            marks[-1][0].synchronize()
        total: dict[str, float] = defaultdict(float)
        for (start, phase), (end, _) in itertools.pairwise(marks):
            if phase is not None:
                total[phase] += start.elapsed_time(end) / 1000 if self.on_cuda else end - start
        return dict(total)

    def _switch(self, phase: str | None) -> None:
        if self.on_cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self._marks.append((mark, phase))
        self.phase = phase


def timed(phase: str) -> Callable:
    """Count the time of a function of a trainer, its first argument, as that phase, where the trainer has a monitor.

    Args:
        phase: "generation", "teacher" or "student".
    """

    def wrap(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(trainer, *args, **kwargs):
            if trainer.monitor is None:
                return function(trainer, *args, **kwargs)
            with trainer.monitor.clock.within(phase):
                return function(trainer, *args, **kwargs)

        return call

    return wrap


#: Steps, or seconds, after which the time to go is estimated.
STEPS, SECONDS = 3, 30.0
#: Lines that a run logs at least, unless `logging_steps` is set by hand.
LOG_LINES = 10


class RunSize(TrainerCallback):
    """Says how large a step is and how long the run will take, where bars are shown; lets short runs log.

    It also warns where a CPU without the instructions for it is to compute in bfloat16.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        in_bfloat16 = args.bf16 or any(x.dtype == torch.bfloat16 for x in model.parameters())
        if in_bfloat16 and is_slow_in_bfloat16(args.device):
            say_once("This CPU computes bfloat16 2 to 50 times slower than float32. Set dtype: float32, bf16: false.")
        if "logging_steps" not in args._given:
            state.logging_steps = min(state.logging_steps, state.max_steps // LOG_LINES)
        state.logging_steps = max(1, min(state.logging_steps, state.max_steps))
        self.first, self.start, self.is_told = state.global_step, time.monotonic(), False
        completions = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        longest = args.max_completion_length
        size = f"{completions} completions" + ("" if longest is None else f" of up to {longest} tokens")
        self.tell(args, state, f"A step: {size}. Steps to go: {state.max_steps - state.global_step:,}.")

    def on_step_end(self, args, state, control, **kwargs):
        done, seconds = state.global_step - self.first, time.monotonic() - self.start
        left = state.max_steps - state.global_step
        if self.is_told or left <= 0 or not (done >= STEPS or seconds >= SECONDS):
            return
        self.is_told, step = True, seconds / done
        self.tell(args, state, f"A step takes {duration(step)}: about {duration(left * step)} to go.")

    def tell(self, args, state, text: str) -> None:
        """Print a line on the first process, unless the user wants no bars either."""
        if state.is_world_process_zero and not args.disable_tqdm:
            print(text, flush=True)
