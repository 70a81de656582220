"""A pre-flight: the sections, one after the other, on one set of rollouts of a trainer that does not train."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from .contexts import contexts
from .cost import cost
from .findings import Finding
from .loss import loss
from .prefixes import prefixes
from .rollouts import Rollout, num_batches, roll_out, take_rows
from .teacher_answers import answers
from .templates import templates


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


def fly(flight: Flight, sections: Iterable[str]) -> None:
    """Let the student answer, then run sections of `SECTIONS`; one that cannot run says so in a finding."""
    roll(flight)
    for name in sections:
        try:
            SECTIONS[name](flight)
        except ValueError as error:
            flight.findings.append(Finding(name, name, "not run", "", str(error)))


def roll(flight: Flight) -> None:
    """Let the student answer."""
    trainer = flight.trainer
    rows = take_rows(trainer.train_dataset, flight.prompts, seed=trainer.args.seed)
    start = time.perf_counter()
    with flight.bar("The student answers", num_batches(trainer, rows)) as done:
        flight.rollouts = roll_out(trainer, rows, on_batch=done)
    flight.generation_seconds = time.perf_counter() - start


SECTIONS: dict[str, Callable[[Flight], None]] = {
    "templates": templates,
    "prefixes": prefixes,
    "answers": answers,
    "loss": loss,
    "context": contexts,
    "cost": cost,
}
