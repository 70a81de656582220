"""What a server's answers must hold before a loss may see them."""

import json
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..losses.head import Head
from .connections import SMALL, BadAnswerError


T = TypeVar("T")
#: Dtypes in which a head and hidden states come.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Longest name of a model that is taken, characters.
LONGEST_NAME = 1000
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


#: JSON's names of Python's types.
KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number", bool: "a boolean"}


def of_kind(kind: type[T], value: Any, what: str) -> T:
    """A value of exactly this type, so that no boolean is a number; raises BadAnswerError for another one."""
    if type(value) is not kind:
        raise BadAnswerError(f"{what} is {KINDS.get(type(value), 'missing')}, expected {KINDS[kind]}.")
    return value


def json_of(content: bytes) -> dict[str, Any]:
    """The JSON object of an answer, in which no key stands twice."""
    try:
        body = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadAnswerError(f"the answer is not JSON ({error}).") from error
    return of_kind(dict, body, "the answer")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The entries of a JSON object; raises ValueError where one of two would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def read_models(content: bytes) -> tuple[str, int | None, str | None]:
    """Name, window and owner of the first model that a server lists."""
    models = of_kind(list, json_of(content).get("data"), "the list of models")
    if not models:
        raise BadAnswerError("it lists no model. Start it with one.")
    model = of_kind(dict, models[0], "the first model")
    name, window = of_kind(str, model.get("id"), "the name of the model"), model.get("max_model_len")
    if not 0 < len(name) <= LONGEST_NAME:
        raise BadAnswerError(f"the name of the model has {len(name)} characters, expected 1 to {LONGEST_NAME}.")
    if window is not None and of_kind(int, window, "max_model_len") < 2:
        raise BadAnswerError(f"max_model_len is {window}, expected at least 2 tokens.")
    return name, window, model.get("owned_by")


def read_vocabulary(content: bytes) -> dict[str, int]:
    """The vocabulary of an answer: each token and its id."""
    vocab = of_kind(dict, json_of(content).get("vocab"), "the vocabulary")
    for token, number in vocab.items():
        of_kind(int, number, f"the id of {token!r}")
    return vocab


def read_tokens(content: bytes) -> list[int]:
    """The ids of a text."""
    return [of_kind(int, token, "a token") for token in of_kind(list, json_of(content).get("tokens"), "tokens")]


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
    choices = of_kind(list, body.get("choices"), "choices")
    if len(choices) != len(sequences):
        raise BadAnswerError(f"{len(choices)} choices for {len(sequences)} sequences.")
    by_index = {of_kind(dict, choice, "a choice").get("index", place): choice for place, choice in enumerate(choices)}
    if any(type(index) is not int for index in by_index) or sorted(by_index) != list(range(len(sequences))):
        raise BadAnswerError(f"the choices have the indices {list(by_index)}, expected 0 to {len(sequences) - 1}.")
    found = []
    for index, (sequence, scored) in enumerate(zip(sequences, num_scored, strict=True)):
        ids = by_index[index].get("prompt_token_ids")
        if ids is not None and ids != sequence:
            raise BadAnswerError(f"choice {index} is of another sequence than that which was asked for.")
        rows = by_index[index].get("prompt_logprobs")
        found.append(read_sequence(rows, sequence, scored, top_k=top_k, vocab_size=vocab_size))
    return found


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
        entries = sorted(read_entry(token, entry) for token, entry in row.items())
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadAnswerError(
            f"position {position} is not a map from ids to log-probabilities with ranks ({error!r})."
        ) from error
    ranks = [rank for rank, _, _ in entries]
    beyond = ranks[top_k:]
    if ranks[:top_k] != list(range(1, top_k + 1)) or len(beyond) > 1 or beyond == [top_k]:
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


def read_entry(token: str, entry: dict[str, Any]) -> tuple[int, int, float]:
    """Rank, id and log-probability of an entry; raises TypeError for an id or a number in another form."""
    number, rank, log_prob = int(token), entry["rank"], entry["logprob"]
    if str(number) != token or type(rank) is not int or type(log_prob) not in (float, int):
        raise TypeError(f"{token!r}: {entry}")
    return rank, number, float(log_prob)


def read_tensors(content: bytes, shapes: dict[str, tuple[int | None, ...]]) -> dict[str, Tensor]:
    """Tensors of a safetensors answer: finite, of a floating dtype, of the shapes asked for (None: any size).

    Raises:
        BadAnswerError: cut short, a tensor missing or too many, another shape or dtype, NaN or infinity.
    """
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype that torch does not have
        raise BadAnswerError(f"the answer of {len(content)} bytes is not a safetensors file ({error}).") from error
    for name in {**shapes, **tensors}:
        found, shape = tuple(tensors[name].shape) if name in tensors else None, shapes.get(name)
        fits = found is not None and shape is not None and len(found) == len(shape)
        if not fits or any(want not in (None, size) for want, size in zip(shape, found, strict=True)):
            raise BadAnswerError(f"{name} has the shape {found}, expected {shape}.")
        if tensors[name].dtype not in DTYPES:
            raise BadAnswerError(f"{name} has the dtype {tensors[name].dtype}, expected one of {DTYPES}.")
        if not tensors[name].isfinite().all():
            raise BadAnswerError(f"{name} is not finite.")
    return tensors


def read_head(content: bytes) -> Head:
    """The LM head in an answer of `/v1/head`, with its logit conventions, which stand there as text."""
    metadata = of_kind(dict, json_of(header(content)).get("__metadata__"), "the metadata of the head")
    shapes: dict[str, tuple[int | None, ...]] = {"weight": (None, None)}
    if "bias" in json_of(header(content)):
        shapes["bias"] = (None,)
    tensors = read_tensors(content, shapes)
    weight, bias = tensors["weight"], tensors.get("bias")
    if not weight.numel() or (bias is not None and len(bias) != len(weight)):
        raise BadAnswerError(
            f"a head of {tuple(weight.shape)} with a bias of {0 if bias is None else len(bias)} rows."
        )
    scale = above_zero(metadata, "logit_scale")
    cap = above_zero(metadata, "final_logit_softcapping") if metadata.get("final_logit_softcapping") != "" else None
    return Head(weight, bias, logit_scale=scale, final_logit_softcapping=cap)


def header(content: bytes) -> bytes:
    """The JSON at the start of safetensors."""
    return content[8 : 8 + min(int.from_bytes(content[:8], "little"), SMALL)]


def above_zero(metadata: dict[str, Any], name: str) -> float:
    """A number that stands in the metadata as text."""
    try:
        value = float(of_kind(str, metadata.get(name), name))
    except ValueError as error:
        raise BadAnswerError(f"{name} is not a number ({error}).") from error
    if not 0 < value < math.inf:
        raise BadAnswerError(f"{name} is {value}, expected a number above 0.")
    return value
