"""What a pre-flight works on and what it has found so far: the one argument of every check."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..trainers.looks.held_out import Judge
from ..trainers.looks.pairs import PairFigures, pair_figures
from ..trainers.looks.rollouts import Rollout
from .findings import Finding


#: From a title and a number of batches to a progress bar: a context that gives a function to call after each batch.
Bar = Callable[[str, int], contextlib.AbstractContextManager[Callable[[], None]]]


def no_bar(title: str, total: int) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """The bar of who shows no progress."""
    return contextlib.nullcontext(lambda: None)


@dataclass
class Preflight:
    """A pre-flight while it runs.

    Attributes:
        trainer: an OPDTrainer that does not train.
        prompts: how many rows of its data set the student answers.
        contexts: with how many privileged contexts each prompt is scored in the PI test.
        judge: tells right answers from wrong ones; None where nothing can.
        continue_answers: shall the teacher also go on from half of the student's answers? Not where the judge looks at
            their form: what the student has begun in another form, no teacher can put right.
        teachers: paths or hub ids of the teachers to rank.
        bar: shows progress.
        rollouts: the student's answers, which every check reads.
        generation_seconds: how long the student took to write them.
        findings: of the checks that have run.
        details: further figures of these checks, by their key in the JSON.
    """

    trainer: Any
    prompts: int = 64
    contexts: int = 4
    judge: Judge | None = None
    continue_answers: bool = True
    teachers: Sequence[str] = ()
    bar: Bar = no_bar
    rollouts: list[Rollout] = field(default_factory=list)
    generation_seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    _pairs: PairFigures | None = field(default=None, init=False, repr=False)

    def over_batches(self, title: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """A progress bar over the batches of rollouts."""
        return self.bar(title, len(self.rollouts))

    @property
    def num_completions(self) -> int:
        """How many answers the student has written."""
        return sum(len(rollout.rows) for rollout in self.rollouts)

    def pairs(self) -> PairFigures:
        """Both models token by token on the rollouts: computed for the check that asks first, kept for the others."""
        if self._pairs is None:
            with self.over_batches("Both models on the student's text") as done:
                self._pairs = pair_figures(self.trainer, self.rollouts, on_batch=done)
        return self._pairs

    def could_not_run(self, check: str) -> bool:
        """Has this check been tried in vain? Its finding says why."""
        return any(x.section == check and x.verdict == "not run" for x in self.findings)
