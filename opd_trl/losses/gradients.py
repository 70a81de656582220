"""From the gradient in logits to those of hidden states and head, added up chunk by chunk."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .head import add_product


class LogitGradient(NamedTuple):
    """dL/dz of a chunk of raw logits: dense `(n, V)` where `ids` is None, else `(n, K)` at `ids`, zero elsewhere."""

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
            add_product(grad_weight, self.values.to(hidden_states.dtype).mT, hidden_states)
        else:
            outer = self.values.unsqueeze(-1) * hidden_states.unsqueeze(1).to(self.values.dtype)
            grad_weight.index_add_(0, self.ids.flatten(), outer.flatten(0, 1).to(grad_weight.dtype))

    def add_to_bias(self, grad_bias: Tensor) -> None:
        """Add dL/db of this chunk to `grad_bias` `(V,)`."""
        if self.ids is None:
            grad_bias += self.values.sum(0)
        else:
            grad_bias.index_add_(0, self.ids.flatten(), self.values.flatten().to(grad_bias.dtype))


class HeadGradients:
    """Gradients of hidden states `(N, H)`, weight `(V, H)` and bias `(V,)`, those that are wanted.

    Weight and bias are summed over the chunks in at least float32, whatever the dtype of the head: sums rounded to 16
    bits after every chunk would drift.
    """

    def __init__(self, tensors: tuple[Tensor, Tensor, Tensor | None], wanted: tuple[bool, bool, bool]):
        self.dtypes = [None if x is None else x.dtype for x in tensors]
        hidden_states, weight, bias = tensors
        self.hidden_states = torch.zeros_like(hidden_states) if wanted[0] else None
        self.weight = zeros_for_a_sum(weight) if wanted[1] else None
        self.bias = zeros_for_a_sum(bias) if wanted[2] else None

    def add(self, rows: slice, gradient: LogitGradient, hidden_states: Tensor, weight: Tensor) -> None:
        """Add one chunk: its `hidden_states` `(n, H)` and the head, both in the dtype of the products."""
        if self.hidden_states is not None:
            self.hidden_states[rows] = gradient.to_hidden(weight)
        if self.weight is not None:
            gradient.add_to_weight(self.weight, hidden_states.to(weight.dtype))
        if self.bias is not None:
            gradient.add_to_bias(self.bias)

    def in_dtypes_of_inputs(self) -> list[Tensor | None]:
        """The three gradients as autograd expects them."""
        found = (self.hidden_states, self.weight, self.bias)
        return [None if x is None else x.to(dtype) for x, dtype in zip(found, self.dtypes, strict=True)]


def zeros_for_a_sum(like: Tensor) -> Tensor:
    """Zeros of the shape of `like`, in at least float32."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
