"""A loss of the LM head's logits whose gradients are formed in the forward, chunk by chunk."""

from collections.abc import Callable

import torch
from torch import Tensor

from .head import HeadGradients, LogitGradient, chunks, in_compute_dtype, project


#: (raw logits of a chunk, its rows, is a gradient wanted) -> loss, gradient in the raw logits, per-token statistics.
#: It may overwrite the logits.
ChunkLoss = Callable[[Tensor, slice, bool], tuple[Tensor, LogitGradient | None, tuple[Tensor, ...]]]


class FusedHeadLoss(torch.autograd.Function):
    """Sum of a chunk-wise loss of raw logits; backward multiplies the stored gradients by the incoming scalar."""

    @staticmethod
    def forward(
        ctx,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        chunk_loss: ChunkLoss,
        chunk_size: int,
        grad_enabled: bool,
    ):
        wanted = tuple(grad_enabled and need for need in ctx.needs_input_grad[:3])
        gradients = HeadGradients((hidden_states, weight, bias), wanted)
        total = hidden_states.new_zeros((), dtype=torch.promote_types(hidden_states.dtype, torch.float32))
        stats: list[tuple[Tensor, ...]] = []
        weight = in_compute_dtype(weight)
        with torch.autocast(weight.device.type, enabled=False):
            for rows in chunks(hidden_states.size(0), chunk_size):
                logits = project(hidden_states[rows], weight, bias)
                loss, gradient, chunk_stats = chunk_loss(logits, rows, any(wanted))
                total += loss
                stats.append(chunk_stats)
                if gradient is not None:
                    gradients.add(rows, gradient, hidden_states[rows], weight)
                del logits, gradient  # before the next chunk is projected
        ctx.grads = gradients.in_dtypes_of_inputs()
        outputs = [torch.cat(parts) for parts in zip(*stats, strict=True)]
        ctx.mark_non_differentiable(*outputs)
        return total, *outputs

    @staticmethod
    def backward(ctx, grad_loss: Tensor, *_):
        grads = ctx.grads
        if grads is None:
            raise RuntimeError("this loss was differentiated before. Call the first backward with retain_graph=True.")
        if torch._C._autograd._get_current_graph_task_keep_graph():
            grads = [None if grad is None else grad.clone() for grad in grads]
        else:  # nobody needs them again: scale in place and hand them over, no second (V, H) tensor
            ctx.grads = None
        return *(None if grad is None else grad.mul_(grad_loss) for grad in grads), None, None, None
