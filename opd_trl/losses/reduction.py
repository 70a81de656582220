"""From one value per token to the scalar that is differentiated."""

import torch
from torch import Tensor


def masked_mean(
    per_token_loss: Tensor, loss_mask: Tensor, *, num_items_in_batch: Tensor | float | None = None
) -> Tensor:
    """Sum over the kept tokens, divided by their number in the whole batch.

    Dividing every micro-batch by the same global count makes the gradient independent of how the batch is split.

    Args:
        per_token_loss: any shape; carries the gradient. Values at masked positions are ignored, NaN included.
        loss_mask: same shape, bool or 0/1.
        num_items_in_batch: kept tokens of the whole global batch; by default those of `loss_mask`.

    Returns:
        scalar, float32 (float64 for float64 inputs). An empty mask gives a zero that keeps its graph, so that every
        rank can run backward.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> loss, mask = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1, 1, 0]])
        >>> masked_mean(loss, mask).item(), masked_mean(loss, mask, num_items_in_batch=6).item()
        (1.5, 0.5)
    """
    if per_token_loss.shape != loss_mask.shape:
        raise ValueError(
            f"per_token_loss and loss_mask must have the same shape, got {tuple(per_token_loss.shape)} and "
            f"{tuple(loss_mask.shape)}."
        )
    kept = loss_mask.bool()
    count = kept.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    total = torch.where(kept, per_token_loss, 0.0).sum(dtype=torch.promote_types(per_token_loss.dtype, torch.float32))
    return total / count.to(per_token_loss.device).clamp(min=1)
