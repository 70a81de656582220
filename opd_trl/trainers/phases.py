"""How long generation, teacher and student take of a step, without waiting for an accelerator in between."""

import functools
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


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
