"""What a server's answers must hold before a loss may see them."""

import math
from dataclasses import dataclass
from typing import Any

import requests
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from .transport import BadAnswerError


#: A sum of probabilities may exceed 1 by this much: log-probabilities of 16-bit models are rounded.
ROUNDING = 1e-2


@dataclass(frozen=True)
class SequenceLogProbs:
    """What a teacher says of the last `n` tokens of a sequence, each given all tokens before it.

    Attributes:
        ids: `(n, K)` int64, its most probable ids, best first.
        log_probs: `(n, K)` float32, nats, normalised over its full vocabulary, at temperature 1.
        sampled_log_probs: `(n,)` float32, of the tokens themselves.
    """

    ids: Tensor
    log_probs: Tensor
    sampled_log_probs: Tensor


def json_of(response: requests.Response) -> dict[str, Any]:
    """The JSON object of an answer."""
    try:
        body = response.json()
    except ValueError as error:
        raise BadAnswerError(f"the answer is not JSON ({error}).") from error
    if not isinstance(body, dict):
        raise BadAnswerError(f"the answer is a JSON {type(body).__name__}, not an object.")
    return body


def read_completions(
    body: dict[str, Any],
    sequences: list[list[int]],
    num_scored: list[int],
    *,
    model: str,
    top_k: int,
    vocab_size: int,
) -> list[SequenceLogProbs]:
    """Check an answer of `/v1/completions` with `prompt_logprobs` and turn it into tensors, one per sequence.

    Raises:
        BadAnswerError: another model, another number of sequences, positions or entries than asked for, ids outside
            the vocabulary, a sampled token without an entry, numbers that are no log-probabilities.
    """
    if body.get("model", model) != model:
        raise BadAnswerError(f"the answer is of model {body['model']!r}, not of {model!r}.")
    choices = body.get("choices")
    if not isinstance(choices, list) or len(choices) != len(sequences):
        found = len(choices) if isinstance(choices, list) else "no"
        raise BadAnswerError(f"{found} choices for {len(sequences)} sequences.")
    choices = sorted(choices, key=lambda choice: choice.get("index", 0))
    return [
        read_sequence(choice.get("prompt_logprobs"), sequence, scored, top_k=top_k, vocab_size=vocab_size)
        for choice, sequence, scored in zip(choices, sequences, num_scored, strict=True)
    ]


def read_sequence(rows: Any, sequence: list[int], num_scored: int, *, top_k: int, vocab_size: int) -> SequenceLogProbs:
    """One sequence of `read_completions`; `rows` is its `prompt_logprobs`."""
    if not isinstance(rows, list) or len(rows) != len(sequence):
        found = f"{len(rows)} positions" if isinstance(rows, list) else "no prompt_logprobs"
        raise BadAnswerError(f"{found} for a sequence of {len(sequence)} tokens.")
    ids, log_probs, sampled = [], [], []
    for position in range(len(sequence) - num_scored, len(sequence)):
        entries = read_position(rows[position], position, top_k=top_k, vocab_size=vocab_size)
        token = sequence[position]
        if token not in entries:
            raise BadAnswerError(f"position {position} has no entry for its own token {token}.")
        best = list(entries)[:top_k]
        ids.append(best)
        log_probs.append([entries[i] for i in best])
        sampled.append(entries[token])
    return SequenceLogProbs(torch.tensor(ids), torch.tensor(log_probs), torch.tensor(sampled))


def read_position(row: Any, position: int, *, top_k: int, vocab_size: int) -> dict[int, float]:
    """Token id -> log-probability at one position: the TopK in order, then the token itself where it is beyond."""
    try:
        entries = sorted((int(entry["rank"]), int(token), float(entry["logprob"])) for token, entry in row.items())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadAnswerError(
            f"position {position} is no map from ids to log-probabilities with ranks ({error!r})."
        ) from error
    ranks = [rank for rank, _, _ in entries]
    if ranks[:top_k] != list(range(1, top_k + 1)) or len(ranks) > top_k + 1:
        raise BadAnswerError(
            f"position {position} has the ranks {', '.join(map(str, ranks[: top_k + 2]))} among its entries, expected "
            f"1 to {top_k} and at most one beyond."
        )
    outside = [token for _, token, _ in entries if not 0 <= token < vocab_size]
    if outside:
        raise BadAnswerError(f"position {position} has ids outside the vocabulary of {vocab_size}: {outside[:3]}.")
    log_probs = [log_prob for _, _, log_prob in entries]
    if not all(map(math.isfinite, log_probs)):
        raise BadAnswerError(f"position {position} has log-probabilities that are not finite.")
    if log_probs != sorted(log_probs, reverse=True):
        raise BadAnswerError(f"position {position} has log-probabilities that do not fall with their ranks.")
    mass = math.fsum(math.exp(min(x, 700.0)) for x in log_probs)
    # The K largest of V probabilities sum to K / V at least; half of it, for a head with rows beyond the tokenizer.
    if not 0.5 * top_k / vocab_size <= mass <= 1 + ROUNDING:
        raise BadAnswerError(
            f"position {position} has a TopK that sums to {mass:.3g}, so these are no log-probabilities. Is the "
            "server set to raw logits (--logprobs-mode)?"
        )
    return {token: log_prob for _, token, log_prob in entries}


def read_tensors(response: requests.Response, shapes: dict[str, tuple[int | None, ...]]) -> dict[str, Tensor]:
    """Tensors of a safetensors answer: finite, of the shapes asked for (None: any size).

    Raises:
        BadAnswerError: cut short, a tensor missing, another shape, NaN or infinity.
    """
    try:
        tensors = load(response.content)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype that torch does not have
        raise BadAnswerError(f"the answer of {len(response.content)} bytes is no safetensors ({error}).") from error
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        fits = found is not None and len(found) == len(shape)
        if not fits or any(want not in (None, size) for want, size in zip(shape, found, strict=True)):
            raise BadAnswerError(f"{name} has the shape {found}, expected {shape}.")
        if not tensors[name].isfinite().all():
            raise BadAnswerError(f"{name} is not finite.")
    return tensors
