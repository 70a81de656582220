"""Weights of tokens from what both models think of the sampled text, formed before the loss.

A weight is a function of a `SampledText`: the log-ratios a_t = log q(y_t) - log p(y_t) and the places of the tokens in
their row. It carries no gradient and multiplies the loss of its token, on every support.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .divergences import check_choice
from .mixture import LossTeacher
from .next_token import NextToken
from .objective import Objective, Tokens


class SampledText(NamedTuple):
    """What a weight may read of B completions of at most T tokens.

    Attributes:
        log_ratio: `(B, T)`, a = log q_y - log p_y in nats, zero where a token does not count.
        kept: `(B, T)` bool, which tokens count.
    """

    log_ratio: Tensor
    kept: Tensor


#: From a text to weights `(B, T)`; those of tokens that do not count are not read.
TokenWeight = Callable[[SampledText], Tensor]
#: What becomes of a token outside of the trust region.
Outside = Literal["mask", "clip"]


def early_weight(text: SampledText, *, gamma: float = 0.5) -> Tensor:
    """w_t = 1 + gamma (1 - sum_{s<t} |a_s| / sum_s |a_s|): more for what stands before both models have parted.

    Args:
        text: its tokens that do not count add nothing to either sum.
        gamma: how much more the first token of a row weighs; the last one weighs about 1. 0: all weights are 1.

    Returns:
        `(B, T)`, from 1 to 1 + gamma; 1 + gamma in a row on which both models agree exactly.

    Source: IW-OPD, arXiv 2606.22600 (gamma 0.5).

    Example:
        >>> text = SampledText(torch.tensor([[-1.0, 0.0, 2.0, -1.0]]), torch.ones(1, 4).bool())
        >>> early_weight(text)
        tensor([[1.5000, 1.3750, 1.3750, 1.1250]])
    """
    size = text.log_ratio.abs()
    total = size.sum(-1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)
    return 1 + gamma * (1 - (size.cumsum(-1) - size) / total)


def trust_region(text: SampledText, *, ratio: float, outside: Outside = "mask") -> Tensor:
    """1 where q_y >= ratio p_y; outside 0 (`mask`), or log(ratio) / a (`clip`), so that w a = max(a, log ratio).

    Only rejected tokens can lie outside: the sampled-token loss has advantage a, without a bound below.

    Args:
        text: read token by token.
        ratio: in (0, 1), the smallest q_y / p_y that is trusted.
        outside: what a token outside weighs.

    Raises:
        ValueError: another `outside`, or a ratio that is not inside (0, 1).

    Source: TrOPD, arXiv 2606.01249, whose trust is min(q_y / p_y, 1). Its threshold adapts in a way that could not be
    checked here, so `ratio` is fixed; its forward KL outside of the region is another divergence and no weight.

    Example:
        >>> text = SampledText(torch.tensor([[0.5, 0.2, 0.01]]).log(), torch.ones(1, 3).bool())
        >>> trust_region(text, ratio=0.1), trust_region(text, ratio=0.1, outside="clip")
        (tensor([[1., 1., 0.]]), tensor([[1.0000, 1.0000, 0.5000]]))
    """
    check_choice("outside", outside, get_args(Outside))
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must lie inside (0, 1), got {ratio}.")
    bound = math.log(ratio)
    trusted = text.log_ratio >= bound
    rest = torch.zeros_like(text.log_ratio) if outside == "mask" else bound / text.log_ratio.clamp(max=bound)
    return torch.where(trusted, 1.0, rest)


#: Name -> the function; further arguments of each are options of the run.
TOKEN_WEIGHTS: dict[str, Callable[..., Tensor]] = {"iw_opd": early_weight, "trust_region": trust_region}


@torch.no_grad()
def weighted(
    tokens: Tokens, weight: TokenWeight, student: NextToken, teacher: LossTeacher, kept: Tensor, objective: Objective
) -> tuple[Tokens, Tensor]:
    """Tokens whose weights are multiplied by `weight`, and these factors `(N,)`.

    The loss forms its gradients as it reads a token, so the weights must be known before: one more product with the
    head of either model, chunk by chunk, without a gradient.

    Args:
        tokens: the N tokens, `ids` among them.
        weight: from a text to its weights.
        student, teacher: at these N positions.
        kept: `(B, T)` bool with N True entries: where the tokens stand.
        objective: its temperature and chunk size.
    """
    log_ratio = teacher.token_logps(tokens.ids, objective) - student.token_logps(tokens.ids, objective)
    placed = log_ratio.new_zeros(kept.shape).masked_scatter(kept, log_ratio)
    factors = weight(SampledText(placed, kept))[kept]
    return tokens._replace(weights=tokens.weights * factors), factors
