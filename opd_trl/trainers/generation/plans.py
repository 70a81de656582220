"""Which text each generation batch is made of, and how long its rollouts may become: a function of seed and step."""

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...data.row_checks import in_batch
from ...diagnostics import TextKind
from ..config.config_checks import say_once
from ..open_trainer import with_values
from .given_text import GivenText


#: Entry of a generation batch, without a dimension: its `TextKind`. Absent means WHOLE.
KIND = "text_kind"

Row = dict[str, Any]


class Plan(NamedTuple):
    """What a generation batch is made of.

    Attributes:
        is_given: of the rows' completions, and nothing is generated?
        prefix: how many first tokens of them stand before the student's own.
        limit: most tokens of a rollout, prefix included, where it is below `max_completion_length`; else None.
    """

    is_given: bool = False
    prefix: int = 0
    limit: int | None = None

    @property
    def kind(self) -> TextKind:
        if self.is_given:
            return TextKind.GIVEN
        return TextKind.WHOLE if self.prefix == 0 and self.limit is None else TextKind.PARTIAL


def on_a_line(start: int, end: int, step: int, steps: int) -> int:
    """The whole number at a step on a line from `start` to `end`, which it reaches after `steps` and then keeps.

    >>> [on_a_line(10, 20, step, 4) for step in range(6)]
    [10, 12, 15, 18, 20, 20]
    """
    return round(start + (end - start) * min(step / max(steps, 1), 1.0))


def is_own(seed: int, step: int, number: int, share: float) -> bool:
    """Is a generation batch the student's own text? Drawn with chance `share`, the same on all ranks and resumed.

    Args:
        seed: of the run.
        step, number: the optimizer step before which it is made, and its place among those of that step.
        share: `lmbda`.
    """
    return random.Random(f"{seed} {step} {number}").random() < share


class Rollouts:
    """Plans the generation batches of a trainer, and carries the plans out through what TRL itself reads.

    Given text and prefixes come in as a `rollout_func` of TRL, so that all that is behind generation stays TRL's.
    Evaluation is not planned: there the student writes all of its answers.

    Args:
        trainer: an OPDTrainer.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._step, self._number = -1, 0  # of the last generation batch, within that step
        check_trainer(trainer)
        checks = trainer.row_checks
        self.given = GivenText(checks.template, checks.kwargs, trainer.eos_token_ids, trainer.args)

    def plan(self) -> Plan:
        """The plan of the next generation batch."""
        args, state = self.trainer.args, self.trainer.state
        if not self.trainer.model.training:
            return Plan()
        self._number = self._number + 1 if state.global_step == self._step else 0
        self._step = state.global_step
        if not is_own(args.seed, self._step, self._number, args.lmbda):
            return Plan(is_given=True)
        prefix, limit = args.teacher_prefix_tokens or 0, None
        if prefix:
            prefix = on_a_line(prefix, 0, self._step, args.teacher_prefix_steps or state.max_steps)
        if args.rollout_length_start is not None:
            ends = args.first_rollout_limit, args.last_rollout_limit
            limit = on_a_line(*ends, self._step, args.rollout_length_steps or state.max_steps)
            limit = None if limit == args.max_completion_length else limit
        return Plan(prefix=prefix, limit=limit)

    @contextmanager
    def made_of(self, rows: list[Row]) -> Iterator[dict[str, Tensor]]:
        """Inside, a generation batch of these rows is made as planned; yields its entry `KIND`."""
        plan, trainer = self.plan(), self.trainer
        with ExitStack() as stack:
            if plan.kind is not TextKind.WHOLE:
                stack.enter_context(trainer.metrics_named(plan.kind.named))
            if plan.limit is not None:  # whoever is stopped by it has not failed to end
                stack.enter_context(trainer.rollout_limit(plan.limit))
                stack.enter_context(with_values(trainer, mask_truncated_completions=False))
            if plan.is_given or plan.prefix:
                function = functools.partial(self._from_given, rows=rows, plan=plan)
                stack.enter_context(with_values(trainer, rollout_func=function))
            yield {} if plan.kind is TextKind.WHOLE else {KIND: torch.tensor(plan.kind.value)}

    def _from_given(self, prompts: list, trainer, *, rows: list[Row], plan: Plan) -> dict[str, Any]:
        """A `rollout_func` of TRL: the given text of rows, or the student's own behind its first tokens."""
        name, prompt_ids = in_batch(rows), trainer.tokenize(prompts)
        texts = [self.given.ids(row, name(number)) for number, row in enumerate(rows)]
        if plan.is_given:
            return {"prompt_ids": prompt_ids, "completion_ids": texts, "logprobs": None}
        prefixes = [ids[: min(plan.prefix, len(ids) - 1)] for ids in texts]  # never the end itself
        limit = trainer.max_completion_length
        with ExitStack() as stack:
            if limit is not None:
                shortest = torch.tensor([min(map(len, prefixes))], device=trainer.accelerator.device)
                room = limit - trainer.accelerator.gather(shortest).min().item()  # of all ranks, as servers need it
                stack.enter_context(trainer.rollout_limit(room))
            own, logprobs = trainer.go_on([a + b for a, b in zip(prompt_ids, prefixes, strict=True)])
        lengths = [None if limit is None else limit - len(prefix) for prefix in prefixes]
        own = [ids[:length] for ids, length in zip(own, lengths, strict=True)]
        if logprobs is not None:
            pairs = zip(prefixes, logprobs, lengths, strict=True)
            logprobs = [[0.0] * len(prefix) + values[:length] for prefix, values, length in pairs]
        pairs = list(zip(prefixes, own, strict=True))
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [prefix + ids for prefix, ids in pairs],
            "logprobs": logprobs,
            "env_mask": [[0] * len(prefix) + [1] * len(ids) for prefix, ids in pairs],
        }


def planned(function: Callable) -> Callable:
    """Let a trainer's function, which makes a generation batch of rows, make it as its `rollouts` plan it."""

    @functools.wraps(function)
    def call(trainer, rows: list[Row]) -> dict[str, Any]:
        with trainer.rollouts.made_of(rows) as entries:
            return function(trainer, rows) | entries

    return call


def kind_of(batch: dict[str, Any]) -> TextKind:
    """What the completions of a batch are. Tokens that the student sampled: all with a loss where it is not GIVEN."""
    return TextKind(int(batch.get(KIND, TextKind.WHOLE)))


def check_trainer(trainer) -> None:
    """Refuse plans that others carry out, and given text where the loss needs the student's own.

    Raises:
        ValueError: with the remedy.
    """
    args = trainer.args
    plans = {
        f"lmbda={args.lmbda}": args.lmbda < 1.0,
        f"teacher_prefix_tokens={args.teacher_prefix_tokens}": args.teacher_prefix_tokens is not None,
        f"rollout_length_start={args.rollout_length_start}": args.rollout_length_start is not None,
    }
    for name in (name for name, is_set in plans.items() if is_set and trainer.rollout_func is not None):
        raise ValueError(f"{name} with rollout_func, which writes the rollouts itself. Leave one of them out.")
    if args.teacher_prefix_tokens is not None and any(True in checked.shown for checked in trainer.row_checks.sets):
        raise ValueError(
            f"teacher_prefix_tokens={args.teacher_prefix_tokens} with images, whose tokens TRL lays out for prompts "
            "alone. Leave it out."
        )
    if args.lmbda < 1.0 and trainer.policy_is_active:
        raise ValueError(
            f"lmbda={args.lmbda} with reward functions, beta or an entropy bonus: GRPO's loss is one over text that "
            "the student has sampled. Set lmbda: 1.0, or leave them out."
        )
    if args.rollout_length_start is not None and trainer.has_rewards:
        say_once(
            "reward functions with rollout_length_start: a rollout that is stopped has no end, and the rewards judge "
            "it as it is. Let the limit reach max_completion_length early (rollout_length_steps)."
        )
