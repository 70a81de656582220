"""Prompts and completions as padded tensors: side by side, and which hidden states predict the completion."""

from typing import Any

import torch
from torch import Tensor


def left_pad(sequences: list[list[int]], *, pad_token_id: int, device: torch.device | str = "cpu"):
    """Pad token id lists on the left.

    Returns:
        ids: `(B, P)` int64, mask: `(B, P)` int64. The mask comes from the lengths, never from `ids != pad`: pad may
        be a token that prompts contain, such as EOS.

    Example:
        >>> ids, mask = left_pad([[5], [6, 7]], pad_token_id=0)
        >>> ids.tolist(), mask.tolist()
        ([[0, 5], [6, 7]], [[0, 1], [1, 1]])
    """
    width = max(map(len, sequences))
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in sequences], device=device)
    return ids, mask


def unpadded(batch: dict[str, Any], name: str) -> list[list[int]]:
    """Token ids of each row of `name_ids`, those that `name_mask` keeps."""
    ids, mask = batch[f"{name}_ids"], batch[f"{name}_mask"].bool()
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]


def join(prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor):
    """Left-padded prompt `(B, P)` and right-padded completion `(B, T)` to ids and mask `(B, P + T)`."""
    return torch.cat([prompt_ids, completion_ids], dim=1), torch.cat([prompt_mask, completion_mask], dim=1)


def left_padding(mask: Tensor) -> Tensor:
    """How many columns of padding each row of a mask `(B, L)` begins with, `(B, 1)` int64.

    >>> left_padding(torch.tensor([[0, 0, 1, 1, 0], [1, 1, 1, 1, 1]])).tolist()
    [[2], [0]]
    """
    return (mask.cumsum(-1) == 0).sum(-1, keepdim=True)


def turn(values: Tensor, padding: Tensor) -> Tensor:
    """Move the padding `(B, 1)` at the left of each row of `values` `(B, L)` to its right end.

    >>> turn(torch.tensor([[0, 0, 7, 8], [5, 6, 7, 8]]), torch.tensor([[2], [0]])).tolist()
    [[7, 8, 0, 0], [5, 6, 7, 8]]
    """
    length = values.size(1)
    return values.gather(1, (torch.arange(length, device=values.device) + padding) % length)


def cut(ids: Tensor, lengths: Tensor) -> list[list[int]]:
    """The token ids of rows `(B, L)` without what stands behind their lengths `(B,)`."""
    return [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]


def spans(*masks: Tensor) -> Tensor:
    """Tokens `(B,)` of each row of masks `(B, L)` side by side, from its first one to its last one: what must be read.

    >>> spans(torch.tensor([[0, 0], [0, 1]]), torch.tensor([[1, 1, 0], [1, 0, 1]])).tolist()
    [2, 4]
    """
    mask = torch.cat(masks, dim=1)
    return (mask.size(1) - left_padding(mask) - left_padding(mask.flip(-1))).squeeze(1)


def longest_row(mask: Tensor) -> Tensor:
    """Tokens of the longest row of a mask `(B, L)`.

    >>> longest_row(torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 0, 1]])).item()
    4
    """
    return spans(mask).max()


def computed_and_real(batch: dict[str, Tensor]) -> Tensor:
    """Tokens `(2,)` that a forward of the student over a micro-batch computes, and how many of them are no padding."""
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    return torch.stack([len(mask) * longest_row(mask), mask.sum()])


def completion_positions(hidden_states: Tensor, first: Tensor, num_tokens: int) -> Tensor:
    """Hidden states `(B, L, H)` that predict the T completion tokens of each row: `(B, T, H)`.

    Args:
        hidden_states: of rows without padding at their left, cut behind the longest one.
        first: `(B, 1)` int64, the position that predicts the first completion token of each row.
        num_tokens: T. What stands in front of a row or behind its end has no meaning.
    """
    places = first.to(hidden_states.device) + torch.arange(num_tokens, device=hidden_states.device)
    places = places.clamp(0, hidden_states.size(1) - 1).unsqueeze(-1)
    return hidden_states.gather(1, places.expand(-1, -1, hidden_states.size(-1)))
