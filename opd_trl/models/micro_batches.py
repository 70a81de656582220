"""The rows of a generation batch in micro-batches of rows that are about as long as one another."""

from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid


def row_lengths(batch: dict[str, Any]) -> Tensor:
    """Tokens `(B,)` of each row: what the student reads, and what a teacher with a prompt of its own reads too."""
    completion = batch["completion_mask"].sum(-1)
    prompts = [batch[name].sum(-1) for name in ("prompt_mask", "teacher_prompt_mask") if name in batch]
    return sum(prompt + completion for prompt in prompts)


def longest_first(batch: dict[str, Any]) -> Tensor:
    """The places `(B,)` of the rows in the order of their lengths."""
    return row_lengths(batch).argsort(descending=True, stable=True)


def by_length(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of these micro-batches in as many others, each of rows that are about equally long, the longest first.

    Sums over all rows stay what they are, and all ranks have their long rows at the same time.

    Args:
        batches: equally large ones. Their entries have a value for each row, or one without a dimension for all.
    """
    split = [split_pixel_values_by_grid(batch) for batch in batches]  # images in lists, by rows
    merged = {name: joined([batch[name] for batch in split]) for name in split[0]}
    order = longest_first(merged)
    ordered = {name: picked(value, order) for name, value in merged.items()}
    return [unsplit_pixel_values_by_grid(batch) for batch in split_tensor_dict(ordered, len(batches))]


def joined(values: list[Any]) -> Any:
    """One entry of several micro-batches as that of all; what has no rows is the same in each."""
    if isinstance(values[0], list):
        return [value for batch in values for value in batch]
    return torch.cat(values) if isinstance(values[0], Tensor) and values[0].ndim else values[0]


def picked(value: Any, rows: Tensor) -> Any:
    """These rows of an entry."""
    if isinstance(value, list):
        return [value[i] for i in rows.tolist()]
    return value[rows] if isinstance(value, Tensor) and value.ndim else value
