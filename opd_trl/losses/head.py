"""The LM head: its products in chunks of tokens, what models do to raw logits, and the gradients of both.

Products are taken in the head's dtype with float32 results.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .divergences import LOG_ZERO


class LogitTransform(NamedTuple):
    """From raw head outputs z to the logits of a distribution, cap tanh(scale z / cap) / temperature; None: no cap.

    Ids that are `excluded`, `(E,)`, have no probability and no gradient.
    """

    temperature: float = 1.0
    logit_scale: float = 1.0
    final_logit_softcapping: float | None = None
    excluded: Tensor | None = None

    def apply(self, raw: Tensor) -> Tensor:
        """Scale, soft-cap and temper raw outputs `(..., V)`, in this order; `raw` may be overwritten."""
        if self.logit_scale != 1.0:
            raw = raw * self.logit_scale
        if self.final_logit_softcapping is not None:
            raw = self.final_logit_softcapping * torch.tanh(raw / self.final_logit_softcapping)
        logits = raw if self.temperature == 1.0 else raw / self.temperature
        return logits if self.excluded is None else logits.index_fill_(-1, self.excluded, LOG_ZERO)

    def chain(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """From dL/dlogits to dL/draw: times scale (1 - tanh^2) / temperature, from the transformed `logits`."""
        slope = self.logit_scale / self.temperature
        if self.final_logit_softcapping is not None:
            capped = logits * (self.temperature / self.final_logit_softcapping)
            if self.excluded is not None:  # their gradient is zero, and their square would overflow
                capped = capped.clamp(min=-1.0)
            gradient = gradient * (1 - capped**2)
        return gradient if slope == 1.0 else gradient * slope


@dataclass(frozen=True)
class Head:
    """The LM head of a model: hidden states h -> raw outputs h W^T + b -> logits, by the model's own conventions.

    Attributes:
        weight: W, `(V, H)`.
        bias: b, `(V,)`, or None.
        logit_scale, final_logit_softcapping: as in `LogitTransform`, under the names of the model's config.
        excluded: `(E,)` int64, ids without probability: its distributions are those over the other ids; None: all.
    """

    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    final_logit_softcapping: float | None = None
    excluded: Tensor | None = None

    @property
    def num_ids(self) -> int:
        """How many ids can have a probability."""
        return self.weight.size(0) - (0 if self.excluded is None else len(self.excluded))

    def transform(self, temperature: float) -> LogitTransform:
        """From its raw outputs to logits at a temperature."""
        return LogitTransform(temperature, self.logit_scale, self.final_logit_softcapping, self.excluded)

    def detach(self) -> "Head":
        """The same head without gradients."""
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def to(self, target: torch.device | torch.dtype) -> "Head":
        """The same head on a device, or in a dtype."""
        return replace(self, weight=self.weight.to(target), bias=None if self.bias is None else self.bias.to(target))

    def rows(self, num_rows: int, excluded: Tensor | None = None) -> "Head":
        """The first `num_rows` rows without those `excluded`, gathered from all ranks where FSDP2 shards them.

        Views, never the parameters: a view still holds what ZeRO-3 gathered when the parameter is partitioned again,
        so that a backward can project once more.
        """
        # Only FSDP2's DTensor has full_tensor(); the losses need no torch.distributed to ask for it.
        weight, bias = (x.full_tensor() if hasattr(x, "full_tensor") else x for x in (self.weight, self.bias))
        excluded = None if excluded is None else excluded.to(weight.device)
        if weight.size(0) == num_rows:
            weight, bias = View.apply(weight), None if bias is None else View.apply(bias)
        else:
            weight, bias = weight[:num_rows], None if bias is None else bias[:num_rows]
        return replace(self, weight=weight, bias=bias, excluded=excluded)


class View(torch.autograd.Function):
    """`x.view_as(x)` that hands the gradient on as it is.

    Autograd's own makes a view of it, which is not added to in place: where the head is tied, the sum with the
    gradient of the embedding would be one more `(V, H)` tensor.
    """

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


def check_rows(num_tokens: int, **shapes: tuple[int, ...]) -> None:
    """Raise ValueError unless every named shape is `(num_tokens,)`: a slice or a gather would not notice."""
    for name, shape in shapes.items():
        if tuple(shape) != (num_tokens,):
            raise ValueError(f"{name} must have one row for each of the {num_tokens} tokens, got {tuple(shape)} rows.")


def in_compute_dtype(weight: Tensor) -> Tensor:
    """The head in the dtype of its products: its own, or that of an active autocast; cast once for all chunks."""
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return weight.to(torch.get_autocast_dtype(device))
    return weight


def project(hidden_states: Tensor, lm_head_weight: Tensor, bias: Tensor | None) -> Tensor:
    """Raw logits `(n, V)` in at least float32, multiplied in the dtype of the head."""
    hidden_states = hidden_states.to(lm_head_weight.dtype)
    if rounds_products(lm_head_weight):  # bfloat16 logits near 20 would be multiples of 1/8
        logits = torch.mm(hidden_states, lm_head_weight.mT, out_dtype=torch.float32)
        return logits if bias is None else logits.add_(bias)
    logits = F.linear(hidden_states, lm_head_weight, None if bias is None else bias.to(lm_head_weight.dtype))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b; `total` in at least float32, `a` and `b` in the dtype of the head."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif rounds_products(a):  # torch before 2.10 cannot on CUDA (pytorch/pytorch#167931)
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def rounds_products(matrix: Tensor) -> bool:
    """Would a product be rounded to 16 bits that could be had in float32? PyTorch can on CUDA alone."""
    return matrix.is_cuda and matrix.dtype in (torch.bfloat16, torch.float16)


# Bytes for the two float32 `(chunk, V)` tensors that live at a time, the logits of student and teacher. A CPU gains
# nothing above its budget and an accelerator needs long products; docs/performance.md has the measurements.
CPU_BUDGET = 128 * 2**20
ACCELERATOR_BUDGET = 1024 * 2**20

# What is computed element by element inside a chunk goes block by block, with temporaries of a fraction of a chunk.
BLOCKS_PER_CHUNK = 16


def chunk_size_for(vocab_size: int, device: torch.device, *, budget: int | None = None, tensors: int = 2) -> int:
    """Tokens projected at once, budget / (2 x 4 bytes x V), at least 1.

    Args:
        vocab_size: V.
        device: where the head lies; decides the default budget.
        budget: bytes for the logits of student and teacher; 128 MiB on a CPU, 1 GiB on an accelerator by default.
        tensors: `(chunk, V)` that live at a time, where they are not 2.

    Example:
        >>> chunk_size_for(151936, torch.device("cpu")), chunk_size_for(151936, torch.device("cuda"))
        (110, 883)
    """
    if budget is None:
        budget = CPU_BUDGET if device.type == "cpu" else ACCELERATOR_BUDGET
    return max(1, budget // (tensors * 4 * vocab_size))


def block_size_for(vocab_size: int, device: torch.device) -> int:
    """Tokens whose elementwise work is done at once."""
    return max(1, chunk_size_for(vocab_size, device) // BLOCKS_PER_CHUNK)


def chunks(num_tokens: int, chunk_size: int) -> list[slice]:
    """Row slices of at most `chunk_size` that cover `num_tokens`, equally long up to one row.

    One empty slice for an empty batch, which keeps its graph through it.

    Raises:
        ValueError: `chunk_size` below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1, got {chunk_size}. Leave it out to choose it from a memory budget.")
    count = max(1, -(-num_tokens // chunk_size))
    ends = [num_tokens * (i + 1) // count for i in range(count)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


class LogitGradient(NamedTuple):
    """dL/dz of a chunk of raw logits: dense `(n, V)` where `ids` is None, else `(n, K)` at `ids`, zero elsewhere."""

    values: Tensor
    ids: Tensor | None = None

    def to_hidden(self, weight: Tensor) -> Tensor:
        """The gradient in the hidden states, dL/dh = dL/dz W, `(n, H)`."""
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
