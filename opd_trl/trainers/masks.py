"""Which completion tokens the distillation loss is taken on."""

from typing import Any

from torch import Tensor

from .config import OPDConfig


def loss_mask(args: OPDConfig, batch: dict[str, Any], tokenizer) -> Tensor:
    """`(B, T)`, 1 where a token counts: written by the student, neither among the first ones nor skipped by name.

    Args:
        args: `num_loss_tokens_to_skip`, `loss_skip_first`.
        batch: `completion_ids`, `completion_mask`, and `tool_mask` where tools wrote a part.
        tokenizer: of the student.
    """
    mask = batch["completion_mask"] * batch.get("tool_mask", 1)
    mask[:, : args.num_loss_tokens_to_skip] = 0
    for text in args.loss_skip_first or []:
        for token in tokenizer.encode(text, add_special_tokens=False):
            mask = mask * ~first_place(batch["completion_ids"] == token)
    return mask


def first_place(found: Tensor) -> Tensor:
    """Keep the first True of each row of a `(B, T)` mask.

    >>> import torch
    >>> first_place(torch.tensor([[False, True, True], [False, False, False]])).tolist()
    [[False, True, False], [False, False, False]]
    """
    return found & (found.cumsum(-1) == 1)
