"""What distillation makes of the advantage of a policy loss: one value per completion becomes one per token.

A function takes the advantage A of each completion and a `SampledText`, whose log-ratios are a_t = log q(y_t) - log
p(y_t). No gradient flows through what it returns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .token_weights import SampledText


def rlsd(advantage: Tensor, text: SampledText, *, share: float = 0.5, clip: float = 0.2) -> Tensor:
    """A_t = A ((1 - share) + share clip(exp(sign(A) a_t), 1 - clip, 1 + clip)): the reward's sign, the teacher's size.

    In a good completion the tokens count more that the teacher likes better than the student does; in a bad one those
    that it likes less.

    Args:
        advantage: `(B, 1)`, of each completion.
        text: where a token does not count, A_t is A.
        share: in [0, 1]; 0 is the advantage itself.
        clip: in [0, 1]; below 1 no token changes its sign or goes out.

    Returns:
        `(B, T)`.

    Source: RLSD, arXiv 2604.03128, with the defaults of ms-swift 4.6.

    Example:
        >>> text = SampledText(torch.tensor([[0.1, 2.0, -2.0]]), torch.ones(1, 3).bool())
        >>> rlsd(torch.tensor([[1.0]]), text), rlsd(torch.tensor([[-1.0]]), text)
        (tensor([[1.0526, 1.1000, 0.9000]]), tensor([[-0.9524, -0.9000, -1.1000]]))
    """
    evidence = (advantage.sign() * text.log_ratio).exp().clamp(1 - clip, 1 + clip)
    return advantage * torch.where(text.kept, 1 - share + share * evidence, 1.0)


def sdar(advantage: Tensor, text: SampledText, *, coef: float = 0.1, sharpness: float = 5.0) -> Tensor:
    """A_t = A + coef sigmoid(sharpness a_t): the policy gradient of L_GRPO + coef mean sg(sigmoid(sharpness a)) a.

    **Mind the sign.** The gate is positive and a_t falls as log p_y rises, so the second term only ever raises sampled
    tokens: by half of `coef` where both models agree, by a little even where the teacher rules the token out. A
    student that equals its teacher is not at rest: it sharpens what it samples.

    Args:
        advantage: `(B, 1)`, of each completion.
        text: where a token does not count, A_t is A.
        coef: of the second term.
        sharpness: of the gate.

    Returns:
        `(B, T)`.

    Source: SDAR, arXiv 2605.15155 (sharpness 5; coef 0.1, and 0.01 for one of its tasks), after ms-swift 4.6.

    Example:
        >>> text = SampledText(torch.tensor([[0.0, 1.0, -1.0]]), torch.ones(1, 3).bool())
        >>> sdar(torch.tensor([[0.0]]), text)
        tensor([[0.0500, 0.0993, 0.0007]])
    """
    gate = torch.where(text.kept, torch.sigmoid(sharpness * text.log_ratio), 0.0)
    return advantage + coef * gate


#: Name -> the function; further arguments of each are options of the run.
ADVANTAGE_SHAPES: dict[str, Callable[..., Tensor]] = {"rlsd": rlsd, "sdar": sdar}
