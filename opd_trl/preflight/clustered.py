"""Standard errors where values come in clusters: the tokens of a prompt, the prompts that share a context."""

from typing import NamedTuple

import torch
from torch import Tensor


# Standard errors on either side of a 95 % interval.
WIDTH = 1.96


class Estimate(NamedTuple):
    """A figure and its standard error.

    >>> Estimate(0.5, 0.1).high
    0.696
    """

    value: float
    error: float

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.value - WIDTH * self.error

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.value + WIDTH * self.error


def ratio(top: Tensor, bottom: Tensor, contexts: Tensor | None = None) -> tuple[Estimate, float | None]:
    """A ratio of sums with its standard error over prompts and over contexts.

    With u_k the influence of prompt k on the ratio and v_kc that of context c there, the variance is
    K / (K - 1) sum_k u_k^2, which holds the drawing of contexts for each prompt, plus
    sum_c [(sum_k v_kc)^2 - sum_k v_kc^2], what prompts have in common because a context was drawn for several of them.

    Args:
        top, bottom: `(K, n)` pseudo-values of the sums of each prompt, one for each context.
        contexts: `(K, n)`, which context each is; None where there is nothing to draw.

    Returns:
        the ratio (0 where the bottom is 0), and its standard error from drawing contexts for these prompts out of
        theirs, which a larger n lowers; None for n < 3.

    Source: clustering in two ways, Cameron, Gelbach and Miller 2011.
    """
    whole = bottom.mean(1).sum()
    if whole <= 0:
        return Estimate(0.0, 0.0), None
    value = top.mean(1).sum() / whole
    residual = (top - value * bottom) / whole
    by_prompt = residual.mean(1)
    used = (bottom.mean(1) > 0).sum()
    variance, drawn = used / (used - 1) * by_prompt.square().sum(), None
    n = top.size(1)
    if contexts is not None and n > 2:
        # Around the mean of n that holds it, a context's influence is only (n - 1) / n of what it is.
        of_context = (residual - by_prompt[:, None]) / (n - 1)
        together = torch.zeros(int(contexts.max()) + 1, dtype=top.dtype)
        together.index_add_(0, contexts.flatten(), of_context.flatten())
        separate = of_context.square().sum()
        variance = variance + (together.square().sum() - separate).clamp(min=0)
        drawn = ((n - 1) / n * separate).sqrt().item()
    return Estimate(value.item(), variance.sqrt().item()), drawn


def mean_of(values: Tensor | None) -> Estimate | None:
    """Mean and standard error; None for fewer than two values."""
    if values is None or len(values) < 2:
        return None
    return Estimate(values.double().mean().item(), (values.double().std() / len(values) ** 0.5).item())
