"""The loss of texts that are several tokens: the log-ratio of a whole span is the advantage of each of its tokens."""

import torch
from torch import Tensor

from .next_token import NextToken
from .objective import Objective, Tokens, sampled_token_loss


def span_loss(
    student: NextToken, tokens: Tokens, span: Tensor, teacher_logps: Tensor, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over tokens of weight x sg(log p(span) - log q(span)) log p(token).

    log p(span) is the sum over its tokens, so that a span of one token is `sampled_token_loss`. Where the spans end
    does not depend on what is written later, the expectation over the student's text is the gradient of the reverse
    KL between both models' next spans.

    Args:
        student: at N positions, over its whole vocabulary; carries the gradient.
        tokens: the N sampled tokens, `ids` among them.
        span: `(N,)` int64, the number of each token's span. All tokens of a span are here.
        teacher_logps: `(N,)`, log q of the text of each token's span, nats; never a gradient.
        objective: its temperature and chunk size.

    Returns:
        loss: scalar.
        stats: `per_token_divergence` and `sampled_log_ratio`, the span's log-ratio shared out among its tokens, and
            `entropy`; detached `(N,)`.
    """
    logps, _, entropy = student.log_probs(
        ids=tokens.ids.unsqueeze(-1), temperature=objective.temperature, chunk_size=objective.chunk_size
    )
    logps = logps.squeeze(-1)
    _, place, size = span.unique(return_inverse=True, return_counts=True)
    own = logps.new_zeros(len(size)).index_add_(0, place, logps.detach())
    advantage = teacher_logps.to(logps.dtype) - own[place]
    loss = (tokens.weights * sampled_token_loss(logps, logps.detach() + advantage)).sum()
    ratio = advantage / size[place]
    return loss, {"per_token_divergence": -ratio, "sampled_log_ratio": ratio, "entropy": entropy.detach()}


def merged(stats: dict[str, Tensor], others: dict[str, Tensor], at: Tensor) -> dict[str, Tensor]:
    """Figures `(N,)` of all tokens, from those where `at` `(N,)` and those elsewhere; NaN where there is none."""
    found = {}
    for name, values in stats.items():
        found[name] = values.new_full(at.shape, torch.nan)
        found[name][at] = values
        if name in others:
            found[name][~at] = others[name].to(values.dtype)
    return found
