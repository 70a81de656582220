"""Some optimizer steps of a run as it is configured, with a look at held-out prompts before and after them."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from ...models.multimodal import has_images
from ...models.sampling import Completion
from ...trainers.looks.held_out import HeldOut, Judge, hold_out, room, whole_batch
from ...trainers.looks.rollouts import Rollout
from ..teacher_answers import nats_under_student, teacher_answers
from . import PROMPTS, STEPS


#: Added to the seed of the run: what is drawn for the trial is not what the run draws.
SEED = 7919


class HeldOutOfTrial(HeldOut):
    """Also `teacher_text`: the NLL of the teacher's own answers under the student, nats a token.

    They are written at the first look. There are none of several teachers, of a served one, and to images.
    """

    has_looked = False
    texts: list[Completion] | None = None

    def further(self, rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        if not self.has_looked:
            self.has_looked, self.texts = True, written(self.trainer, rollouts, self.seed)
        if self.texts is None:
            return {}
        nats = nats_under_student(self.trainer, rollouts, self.texts)
        return {"teacher_text": [x / tokens if tokens else math.nan for x, tokens in nats]}


def written(trainer, rollouts: Sequence[Rollout], seed: int) -> list[Completion] | None:
    """The teacher's own answers to the prompts of rollouts; None where it writes none."""
    writes = len(trainer.teachers) == 1 and trainer.teacher.can_write
    if not writes or any(has_images(rollout.batch) for rollout in rollouts):
        return None
    return teacher_answers(trainer, rollouts, continue_too=False, seed=seed).teacher


@dataclass(frozen=True)
class Outcome:
    """What a trial has found: the values of each held-out prompt, by figure, at three times.

    Attributes:
        steps: optimizer steps of all of it.
        learning_rates: that of each step.
        before, after: see `HeldOut.measure`.
        halfway: the same after half of the steps; None where there is one step alone.
    """

    steps: int
    learning_rates: list[float]
    before: dict[str, list[float]]
    halfway: dict[str, list[float]] | None
    after: dict[str, list[float]]


class Looks(TrainerCallback):
    """Measures when training begins and after some numbers of steps.

    Args:
        trainer: that trains.
        at: numbers of optimizer steps; None: those of a trial of `STEPS`, or of all steps of a shorter run.
        rows: held-out ones.
        judge: scores answers, or None.
        stop: end training at the last look.

    Attributes:
        found: number of steps -> what was measured then; 0: before the first.
        learning_rates: of each step.
    """

    def __init__(
        self, trainer, at: Collection[int] | None, rows: list[dict[str, Any]], judge: Judge | None, *, stop: bool
    ):
        self.at, self.stop = at, stop
        self.held_out = HeldOutOfTrial(trainer, rows, judge=judge, seed=trainer.args.seed + SEED)
        self.found: dict[int, dict[str, list[float]]] = {}
        self.learning_rates: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.at = self.at or looks_of(min(STEPS, state.max_steps))
        if (steps := max(self.at)) > state.max_steps:
            raise ValueError(
                f"a trial of {steps} steps, and the run has {state.max_steps}. Give --trial {state.max_steps} or less."
            )
        self.found[0] = self.held_out.measure()

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        self.learning_rates.append(lr_scheduler.get_last_lr()[0])

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.at:
            self.found[state.global_step] = self.held_out.measure()
        if self.stop and state.global_step == max(self.at):
            control.should_training_stop = True


def looks_of(steps: int) -> set[int]:
    """When a trial looks: half-way and at its end.

    >>> sorted(looks_of(10)), sorted(looks_of(1))
    ([5, 10], [1])
    """
    return {max(1, steps // 2), steps}


def try_out(trainer, *, steps: int | None = None, prompts: int | None = None, judge: Judge | None) -> Outcome:
    """Train for some steps as the run would, and measure on prompts that are left out of it.

    The rate, its schedule, the batch, the engine and what is trained are those of the run. All ranks must call it. The
    trainer is used up: it has trained, and its data set lacks the held-out rows.

    Args:
        trainer: an OPDTrainer that has not begun.
        steps: of the optimizer; of the run's at most. None: `STEPS`, or all of a shorter run.
        prompts: held-out rows; rounded up to whole batches of every process. None: `PROMPTS`, or what whole batches
            there are in a quarter of a smaller data set.
        judge: scores answers; None: the divergence decides.

    Raises:
        ValueError: see `hold_out`, `HeldOut.measure`; more steps than the run has.
    """
    if prompts is None:
        batch = whole_batch(trainer)
        prompts = max(1, min(PROMPTS, room(trainer.train_dataset) // batch * batch))
    rows = hold_out(trainer, prompts, seed=trainer.args.seed + SEED)
    looks = Looks(trainer, steps and looks_of(steps), rows, judge, stop=True)
    trainer.add_callback(looks)
    trainer.train()
    before, *halfway, after = (looks.found[step] for step in sorted(looks.found))
    return Outcome(max(looks.at), looks.learning_rates, before, halfway[0] if halfway else None, after)
