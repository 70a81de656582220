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


def completion_positions(hidden_states: Tensor, num_completion_tokens: int, padding: Tensor | None = None) -> Tensor:
    """Hidden states `(B, P + T, H)` that predict the T completion tokens: `(B, T, H)`, one position earlier.

    `padding` is that of rows which were turned.
    """
    if padding is None:
        return hidden_states[:, -num_completion_tokens - 1 : -1]
    length = hidden_states.size(1)
    place = torch.arange(length - num_completion_tokens - 1, length - 1, device=hidden_states.device)
    place = (place - padding.to(place.device)) % length
    return hidden_states.gather(1, place.unsqueeze(-1).expand(-1, -1, hidden_states.size(-1)))
