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


def completion_positions(hidden_states: Tensor, num_completion_tokens: int) -> Tensor:
    """Hidden states `(B, P + T, H)` that predict the T completion tokens: `(B, T, H)`, one position earlier."""
    return hidden_states[:, -num_completion_tokens - 1 : -1]
