"""The sections of a pre-flight, and how they run one after the other."""

import time
from collections.abc import Callable, Iterable

from .context_check import contexts
from .cost import cost
from .findings import Finding
from .flight import Flight
from .loss import loss
from .prefixes import prefixes
from .rollouts import num_batches, roll_out, take_rows
from .teacher_answers import answers
from .templates import templates


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
