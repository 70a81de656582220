"""The rows of a generation batch in micro-batches of rows that are about as long as one another."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .multimodal import taken
from .sequences import spans


def row_lengths(batch: dict[str, Any]) -> Tensor:
    """Tokens `(B,)` of each row: what the student reads, and what a teacher with a prompt of its own reads too."""
    prompts = [batch[name] for name in ("prompt_mask", "teacher_prompt_mask") if name in batch]
    return sum(spans(prompt, batch["completion_mask"]) for prompt in prompts)


def longest_first(batch: dict[str, Any]) -> Tensor:
    """The places `(B,)` of the rows in the order of their lengths."""
    return row_lengths(batch).argsort(descending=True, stable=True)


def by_length(
    batches: list[dict[str, Any]], sizes: Callable[[dict[str, Any], Tensor], list[int]] | None = None
) -> list[dict[str, Any]]:
    """The rows of these micro-batches in others, each of rows that are about equally long, the longest first.

    Sums over all rows stay what they are, and all ranks have their long rows at the same time.

    Args:
        batches: equally large ones. Their entries have a value for each row, or one without a dimension for all.
        sizes: rows of each micro-batch, of all rows and the order in which they go; None: as many and as large as
            these.
    """
    merged = {name: joined([batch[name] for batch in batches]) for name in batches[0]}
    order = longest_first(merged)
    parts = order.split(len(order) // len(batches) if sizes is None else sizes(merged, order))
    return [taken(merged, rows) for rows in parts]


def rows_that_fit(lengths: list[int], budget: int) -> list[int]:
    """How many of these rows go into each micro-batch, in this order: its rows times the longest are in the budget.

    Args:
        lengths: tokens of each row, none above the budget.
        budget: most tokens that a micro-batch computes.

    Example:
        >>> rows_that_fit([5, 4, 2, 2, 1], budget=8)
        [1, 2, 2]
    """
    sizes, longest = [], 0
    for length in lengths:
        if sizes and (sizes[-1] + 1) * max(longest, length) <= budget:
            sizes[-1], longest = sizes[-1] + 1, max(longest, length)
        else:
            sizes, longest = [*sizes, 1], length
    return sizes


def spread(micro_batches: list[Any], calls: int) -> list[list[Any]]:
    """Micro-batches on this many calls, evenly and in their order; the last call has one.

    >>> spread(["a", "b", "c"], 2), spread(["a"], 3)
    ([['a'], ['b', 'c']], [[], [], ['a']])
    """
    ends = [len(micro_batches) * call // calls for call in range(calls + 1)]
    return [micro_batches[start:end] for start, end in itertools.pairwise(ends)]


def joined(values: list[Any]) -> Any:
    """One entry of several micro-batches as that of all; what has no rows is the same in each."""
    if isinstance(values[0], list):
        return [value for batch in values for value in batch]
    return torch.cat(values) if isinstance(values[0], Tensor) and values[0].ndim else values[0]
