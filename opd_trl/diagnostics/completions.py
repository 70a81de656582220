"""What the tokens of a completion show without any model: where they stand, and what they repeat."""

import torch
from torch import Tensor


#: Bits of one token id in the packed 3-gram: three of them fit into 63, and vocabularies stay below 2^21.
ID_BITS = 21


def position_quartiles(completion_mask: Tensor) -> Tensor:
    """Quartile 0 to 3 of each position within its own completion: floor(4 t / length).

    A completion of fewer than four tokens leaves quartiles empty.

    Args:
        completion_mask: `(B, T)`, 1 up to the end of each completion.

    Returns:
        `(B, T)` int64; meaningless behind the end.

    Example:
        >>> position_quartiles(torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]))[:, :5].tolist()
        [[0, 0, 1, 2, 3], [0, 2, 3, 3, 3]]
    """
    length = completion_mask.sum(-1, keepdim=True).clamp(min=1)
    place = torch.arange(completion_mask.size(-1), device=completion_mask.device)
    return (4 * place // length).clamp(max=3)


def repeated_trigrams(completion_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Which tokens complete a 3-gram that the same completion holds already.

    Args:
        completion_ids: `(B, T)` int64.
        completion_mask: `(B, T)`, 1 up to the end of each completion.

    Returns:
        `(B, T)` bool.

    Example:
        >>> ids = torch.tensor([[5, 6, 7, 5, 6, 7, 7, 7, 7]])
        >>> repeated_trigrams(ids, torch.ones_like(ids)).int().tolist()
        [[0, 0, 0, 0, 0, 1, 0, 0, 1]]
    """
    trigram = completion_ids << 2 * ID_BITS
    trigram[:, 1:] += completion_ids[:, :-1] << ID_BITS
    trigram[:, 2:] += completion_ids[:, :-2]
    place = torch.arange(completion_ids.size(-1), device=completion_ids.device)
    # What is no 3-gram of the completion gets a number of its own.
    trigram = torch.where((place >= 2) & completion_mask.bool(), trigram, -1 - place)
    ordered, order = trigram.sort(dim=-1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(repeated).scatter(-1, order, repeated)


def repetition(repeated: Tensor, completion_mask: Tensor) -> Tensor:
    """1 - distinct 3-grams / 3-grams of each completion.

    Args:
        repeated: `(B, T)` bool, from `repeated_trigrams`.
        completion_mask: `(B, T)`.

    Returns:
        `(B,)` float32; NaN for a completion of fewer than three tokens.

    Source: the 3-gram repetition of arXiv 2605.11182, which goes 0.513, 0.792, 0.998 while a run collapses.

    Example:
        >>> ids = torch.tensor([[5, 6, 7, 5, 6, 7, 7, 7, 7], [1, 2, 0, 0, 0, 0, 0, 0, 0]])
        >>> mask = (ids > 0).long()
        >>> repetition(repeated_trigrams(ids, mask), mask)  # 2 of 7
        tensor([0.2857,    nan])
    """
    trigrams = (completion_mask.sum(-1) - 2).float()
    return torch.where(trigrams > 0, repeated.sum(-1) / trigrams, torch.nan)
