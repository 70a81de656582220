"""A loss of the LM head's logits whose gradients are formed in the forward, chunk by chunk."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .head import chunks, project


class LogitGradient(NamedTuple):
    """dL/dz of a chunk of logits: dense `(n, V)` where `ids` is None, else `(n, K)` at `ids` and zero elsewhere."""

    values: Tensor
    ids: Tensor | None = None

    def to_hidden(self, weight: Tensor) -> Tensor:
        """dL/dh `(n, H)`."""
        values = self.values.to(weight.dtype)
        if self.ids is None:
            return values @ weight
        return F.embedding_bag(self.ids, weight, per_sample_weights=values, mode="sum")

    def add_to_weight(self, grad_weight: Tensor, hidden_states: Tensor) -> None:
        """Add dL/dW of this chunk to `grad_weight` `(V, H)`."""
        if self.ids is None:
            grad_weight += self.values.to(hidden_states.dtype).mT @ hidden_states
        else:
            outer = self.values.unsqueeze(-1) * hidden_states.unsqueeze(1).to(self.values.dtype)
            grad_weight.index_add_(0, self.ids.flatten(), outer.flatten(0, 1).to(grad_weight.dtype))

    def add_to_bias(self, grad_bias: Tensor) -> None:
        """Add dL/db of this chunk to `grad_bias` `(V,)`."""
        if self.ids is None:
            grad_bias += self.values.sum(0)
        else:
            grad_bias.index_add_(0, self.ids.flatten(), self.values.flatten().to(grad_bias.dtype))


#: (raw logits of a chunk, its rows, is a gradient wanted) -> loss, gradient in the raw logits, per-token statistics
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
        want_hidden, want_weight, want_bias = (grad_enabled and need for need in ctx.needs_input_grad[:3])
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        # Head gradients are summed over the chunks in float32, whatever the dtype of the head.
        grad_hidden = torch.zeros_like(hidden_states) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if want_bias else None
        total = hidden_states.new_zeros((), dtype=dtype)
        stats: list[tuple[Tensor, ...]] = []
        for rows in chunks(hidden_states.size(0), chunk_size):
            logits = project(hidden_states[rows], weight, bias)
            loss, gradient, chunk_stats = chunk_loss(logits, rows, want_hidden or want_weight or want_bias)
            total += loss
            stats.append(chunk_stats)
            if want_hidden:
                grad_hidden[rows] = gradient.to_hidden(weight)
            if want_weight:
                gradient.add_to_weight(grad_weight, hidden_states[rows].to(weight.dtype))
            if want_bias:
                gradient.add_to_bias(grad_bias)
        ctx.grads = [
            None if grad is None else grad.to(like.dtype)
            for grad, like in ((grad_hidden, hidden_states), (grad_weight, weight), (grad_bias, bias))
        ]
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
