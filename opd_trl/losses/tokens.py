"""What a loss knows of the tokens that it is taken on, besides the two distributions."""

from typing import NamedTuple

from torch import Tensor


class Tokens(NamedTuple):
    """N sampled tokens: `(N,)` tensors, None where the objective does not ask for them."""

    weights: Tensor
    ids: Tensor | None = None
    sampling_logps: Tensor | None = None
    reference_logps: Tensor | None = None

    def rows(self, rows: slice) -> "Tokens":
        """Some of the tokens."""
        return Tokens(*(None if x is None else x[rows] for x in self))


def importance_weight(student_logps: Tensor, sampling_logps: Tensor, *, cap: float) -> Tensor:
    """min(p_y / mu_y, cap): corrects for tokens that were sampled from mu, an older or differently rounded student.

    Args:
        student_logps: `(...)`, log p_y of the sampled tokens, nats; no gradient flows through the ratio.
        sampling_logps: `(...)`, log mu_y at sampling. NaN where it is unknown: that token has weight 1.
        cap: the largest weight; it bounds the variance and biases towards tokens that mu sampled too often.

    Returns:
        `(...)`, detached.

    Source: truncated importance sampling, as in SDFT (arXiv 2601.19897) and SDPO (arXiv 2601.20802) with a cap of 2.

    Example:
        >>> import torch
        >>> p, mu = torch.tensor([0.2, 0.6, 0.5]), torch.tensor([0.4, 0.1, float("nan")])
        >>> importance_weight(p.log(), mu.log(), cap=2.0)
        tensor([0.5000, 2.0000, 1.0000])
    """
    log_ratio = student_logps.detach() - sampling_logps
    return log_ratio.nan_to_num(nan=0.0).exp().clamp(max=cap)
