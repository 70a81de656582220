"""A pre-flight: the sections, one after the other, on one set of rollouts of a trainer that does not train."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from .findings import Finding
from .rollouts import Rollout


#: Texts and their rows -> 1 or 0 for each.
Judge = Callable[[list[str], list[dict[str, Any]]], list[float]]
#: Title and number of batches -> a progress bar, which yields what is called after each batch.
Bar = Callable[[str, int], contextlib.AbstractContextManager[Callable[[], None]]]


def no_bar(title: str, total: int) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """Shows nothing."""
    return contextlib.nullcontext(lambda: None)


@dataclasses.dataclass
class Flight:
    """What a pre-flight has so far.

    Attributes:
        trainer: an OPDTrainer.
        prompts: rows that the student answers.
        contexts: privileged contexts per prompt in the PI test.
        judge: of answers, where there is one.
        goes_on: does a right answer depend on all of it, so that the teacher can go on from half of the student's?
        bar: shows progress.
        rollouts: of the student.
        generation_seconds: that they took.
        findings: in their order.
        details: further figures, by section.
    """

    trainer: Any
    prompts: int = 64
    contexts: int = 4
    judge: Judge | None = None
    goes_on: bool = True
    bar: Bar = no_bar
    rollouts: list[Rollout] = dataclasses.field(default_factory=list)
    generation_seconds: float = 0.0
    findings: list[Finding] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def over_batches(self, title: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """A progress bar over the batches of rollouts."""
        return self.bar(title, len(self.rollouts))
