"""Which privileged contexts a prompt is scored with, and the teacher's prompts of each: no model in here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..privileged import TEMPLATES, Context, Prompt, check_context
from .rollouts import Rollout


@dataclass(frozen=True)
class Draw:
    """Which contexts each of K distinct prompts is scored with.

    Attributes:
        own: the context of each.
        columns: `(K, n)` int64, whose context; k itself first. n is 1 where all are the same.
        number: `identity` of a row -> k.
    """

    own: list[Context]
    columns: Tensor
    number: dict[str, int]

    def of(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        """The number of each row."""
        return [self.number[identity(row)] for row in rows]

    def contexts(self, numbers: Sequence[int], column: int) -> list[Context]:
        """The contexts of one column."""
        return [self.own[self.columns[k, column]] for k in numbers]


def draw_contexts(trainer, rollouts: Sequence[Rollout], contexts: int, seed: int) -> Draw:
    """Find the distinct prompts and draw other rows' contexts for each, without replacement."""
    view, number, own = trainer._teacher_prompts.view, {}, []
    for row in (row for rollout in rollouts for row in rollout.rows):
        if identity(row) not in number:
            number[identity(row)] = len(own)
            name = f"the row with the prompt {str(row['prompt'])[:80]!r}"
            own.append(view.shared or check_context(row.get(view.column), column=view.column, row=name))
    size = len(own)
    if size < 2:
        raise ValueError(f"the privileged-context test needs at least 2 prompts, got {size}. Raise --prompts.")
    width = 1 if len(set(map(text_of, own))) == 1 else min(contexts, size)
    generator = torch.Generator().manual_seed(seed)
    # k + 1 + r for r in 0 .. K - 2 is every other row.
    others = [torch.randperm(size - 1, generator=generator)[: width - 1] for _ in own]
    columns = torch.stack([torch.cat([torch.tensor([k]), (k + 1 + r) % size]) for k, r in enumerate(others)])
    return Draw(own, columns, number)


def identity(row: dict[str, Any]) -> str:
    """What makes two rows the same: all of their columns."""
    return json.dumps(row, sort_keys=True, default=str)


def text_of(context: Context) -> str:
    """A context as plain text.

    >>> text_of([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    'a\\nb'
    """
    return context if isinstance(context, str) else "\n".join(str(turn["content"]) for turn in context)


@dataclass(frozen=True)
class TeacherIds:
    """Token ids of the teacher's prompts: for each column of a `Draw`, without context, and without the question."""

    columns: list[list[list[int]]]
    empty: list[list[int]]
    alone: list[list[int]] | None


def teacher_prompts(trainer, rollout: Rollout, draw: Draw) -> TeacherIds:
    """Render every prompt that the test needs, as training renders its own."""
    rows, numbers = rollout.rows, draw.of(rollout.rows)
    own = draw.contexts(numbers, 0)

    def render(contexts: list[Context | None], rows: list[dict[str, Any]], what: str) -> list[list[int]]:
        names = [f"the row with the prompt {str(row['prompt'])[:80]!r}, {what}" for row in rows]
        return trainer._teacher_prompts.token_ids(rows, names, contexts=contexts)

    columns = [render(own, rows, "its own context")]
    for column in range(1, draw.columns.size(1)):
        columns.append(render(draw.contexts(numbers, column), rows, "another row's context"))
    try:
        alone = render(own, [{**row, "prompt": without_question(row["prompt"])} for row in rows], "no question")
    except Exception:  # whatever a function of the user's does with an empty question
        if trainer.args.privileged_builder in TEMPLATES:
            raise
        alone = None
    return TeacherIds(columns, render([None] * len(rows), rows, "no context"), alone)


def without_question(prompt: Prompt) -> Prompt:
    """An empty question.

    >>> without_question([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}])
    [{'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': ''}]
    """
    if isinstance(prompt, str):
        return ""
    return [*(turn for turn in prompt[:1] if turn["role"] == "system"), {"role": "user", "content": ""}]
