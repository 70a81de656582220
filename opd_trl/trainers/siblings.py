"""A successful completion of the same prompt as privileged context: what one sample found, its siblings learn."""

from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from ..privileged import Context, is_empty
from .rewards import is_correct


def sibling_contexts(trainer, rows: list[dict[str, Any]], completions: list[Any]) -> list[Context | None]:
    """The privileged context of each row of this process: a success of a sibling, or else the row's own column.

    Args:
        trainer: its rewards of the batch, of all processes.
        rows: of this process, with the completions of one prompt side by side.
        completions: texts, or lists of messages, of these rows.

    Returns:
        None where there is neither: that row's loss must be masked.
    """
    texts = gather_object([answer_of(completion) for completion in completions])
    size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    found = first_success(texts, is_correct(trainer.args, trainer._rewards, trainer.reward_weights), group_size=size)
    own = trainer.accelerator.process_index * len(rows)
    column = trainer.args.privileged_context_column
    return [
        context if context is not None else None if is_empty(row.get(column)) else row[column]
        for context, row in zip(found[own : own + len(rows)], rows, strict=True)
    ]


def first_success(texts: list[str], correct: Tensor, *, group_size: int) -> list[str | None]:
    """For each completion the first other one of its group that is correct.

    >>> import torch
    >>> first_success(["a", "b", "c", "d"], torch.tensor([False, True, False, True]), group_size=2)
    ['b', None, 'd', None]
    """
    successes = [text if right else None for text, right in zip(texts, correct.tolist(), strict=True)]
    found = []
    for row in range(len(texts)):
        start = row - row % group_size
        others = successes[start:row] + successes[row + 1 : start + group_size]
        found.append(next((text for text in others if text is not None), None))
    return found


def answer_of(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion, without what it thought before.

    >>> answer_of([{"role": "assistant", "content": "<think>2 + 2</think>4"}])
    '4'
    """
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return str(text).rsplit("</think>", 1)[-1].strip()
