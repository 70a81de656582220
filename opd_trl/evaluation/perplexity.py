"""How well a model predicts plain text: nats per token and per byte."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor


# From ids `(B, L)` and mask `(B, L)`, right-padded, to the log-probabilities of the ids `(B, L)`: zero at the first
# position, which nothing predicts, and at padding.
Scorer = Callable[[Tensor, Tensor], Tensor]


class TextScore(NamedTuple):
    """The negative log-likelihood of one text.

    Args:
        nats: summed over its tokens.
        num_tokens: how many are predicted: all but the first.
        num_bytes: of those tokens' text in UTF-8, so that models with different tokenizers compare.
    """

    nats: float
    num_tokens: int
    num_bytes: int


def score_texts(texts: Sequence[str], tokenizer, scorer: Scorer, *, batch_size: int = 8) -> list[TextScore]:
    """Score texts, each from its own start.

    A tokenizer with a start token puts it first, and every token of the text is predicted; without one the first
    token is not, nor are its bytes counted.

    Args:
        texts: plain, not empty.
        tokenizer: of the model behind `scorer`.
        scorer: see `Scorer`.

    Raises:
        ValueError: a text of fewer than two tokens.
    """
    import torch

    encoded = [tokenizer(text)["input_ids"] for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        if len(ids) < 2:
            raise ValueError(f"a text of {len(ids)} tokens cannot be scored: {text[:50]!r}. Give longer ones.")
    order, scores = sorted(range(len(texts)), key=lambda i: len(encoded[i])), {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(encoded[i]) for i in chosen)
        ids = torch.tensor([encoded[i] + [0] * (width - len(encoded[i])) for i in chosen])
        mask = torch.tensor([[1] * len(encoded[i]) + [0] * (width - len(encoded[i])) for i in chosen])
        log_probs = scorer(ids, mask).double().sum(1).tolist()
        for i, total in zip(chosen, log_probs, strict=True):
            first = tokenizer.decode(encoded[i][:1], skip_special_tokens=True)
            num_bytes = len(texts[i].encode()) - len(first.encode())
            scores[i] = TextScore(-total, len(encoded[i]) - 1, num_bytes)
    return [scores[i] for i in range(len(texts))]


def per_token(scores: Sequence[TextScore]) -> float:
    """Nats per token, every token weighing the same.

    >>> per_token([TextScore(6.0, 2, 8), TextScore(2.0, 2, 8)])
    2.0
    """
    return sum(score.nats for score in scores) / sum(score.num_tokens for score in scores)


def per_byte(scores: Sequence[TextScore]) -> float:
    """Nats per byte, every byte weighing the same.

    >>> per_byte([TextScore(6.0, 2, 8), TextScore(2.0, 2, 8)])
    0.5
    """
    return sum(score.nats for score in scores) / sum(score.num_bytes for score in scores)


def perplexity(scores: Sequence[TextScore]) -> float:
    """exp of nats per token.

    >>> round(perplexity([TextScore(6.0, 2, 8), TextScore(2.0, 2, 8)]), 3)
    7.389
    """
    return math.exp(per_token(scores))
