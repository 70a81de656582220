"""The LM head: products in the head's dtype with float32 results, and what models do to raw logits."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


# Before 2.10, addmm on CUDA wants the sum in the dtype of its factors (pytorch/pytorch#167931).
ADDS_TO_FLOAT32 = torch.__version__ >= (2, 10)


class LogitTransform(NamedTuple):
    """From raw head outputs to the logits of a distribution, cap tanh(scale z / cap) / temperature."""

    temperature: float = 1.0
    logit_scale: float = 1.0
    final_logit_softcapping: float | None = None

    def apply(self, raw: Tensor) -> Tensor:
        """Scale, soft-cap and temper raw outputs `(..., V)`, in this order."""
        if self.logit_scale != 1.0:
            raw = raw * self.logit_scale
        if self.final_logit_softcapping is not None:
            raw = self.final_logit_softcapping * torch.tanh(raw / self.final_logit_softcapping)
        return raw if self.temperature == 1.0 else raw / self.temperature

    def chain(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """From dL/dlogits to dL/draw: times scale (1 - tanh^2) / temperature, from the transformed `logits`."""
        slope = self.logit_scale / self.temperature
        if self.final_logit_softcapping is not None:
            gradient = gradient * (1 - (logits * (self.temperature / self.final_logit_softcapping)) ** 2)
        return gradient if slope == 1.0 else gradient * slope


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
    elif rounds_products(a) and ADDS_TO_FLOAT32:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    elif rounds_products(a):
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total += a @ b


def rounds_products(matrix: Tensor) -> bool:
    """Would a product be rounded to 16 bits that could be had in float32? PyTorch can on CUDA alone."""
    return matrix.is_cuda and matrix.dtype in (torch.bfloat16, torch.float16)
