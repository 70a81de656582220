"""vLLM's pooling runner on the wire: what `POST /pooling` is sent, and what its answer must hold."""

from typing import Any

import torch
from torch import Tensor

from ..connections import BadAnswerError
from ..server_answers import json_of, of_kind


#: In a refusal of a pooling runner that was started for another task.
OTHER_TASK = ("pooling_task", "Unsupported task")
PATH = "/pooling"
#: Bytes of a number at most.
NUMBER = 4
#: The header of an answer that says where each sequence lies in it.
HEADER = "metadata"
#: Sequences of a request. Each takes about 130 characters of the header, of which 65,536 are read.
MOST_SEQUENCES = 256
#: Dtypes on the wire, by vLLM's names.
WIRE = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def request(model: str, sequences: list[list[int]], num_scored: list[int], dtype: torch.dtype) -> dict[str, Any]:
    """The body that asks for the hidden states of every token, as they are behind the final norm; not of fewer."""
    return {
        "model": model,
        "task": "token_embed",
        "input": sequences,
        "use_activation": False,  # which would make each vector 1 long
        "encoding_format": "bytes",
        "embed_dtype": WIRE[dtype],
        "endianness": "little",
    }


def read_states(
    content: bytes,
    metadata: str,
    lengths: list[int],
    num_scored: list[int],
    *,
    model: str,
    dtype: torch.dtype,
    hidden_size: int | None = None,
) -> list[Tensor]:
    """Check an answer and take the hidden states `(num_scored[i], H)` that predict the last tokens of each sequence.

    The others are not kept.

    Args:
        content: the states of all sequences, one behind the other.
        metadata: JSON, the value of `HEADER`.
        lengths: tokens of each sequence.
        num_scored: of them, how many last ones are predicted; fewer than all.
        model, dtype: as asked for.
        hidden_size: H; None takes any.

    Raises:
        BadAnswerError: another model, another number of sequences, tokens or bytes than asked for, another width or
            dtype, NaN or infinity.
    """
    described = json_of(metadata.encode())
    if described.get("model") != model:
        raise BadAnswerError(f"the answer is of model {described.get('model')!r}, not of {model!r}.")
    items = of_kind(list, described.get("data"), "data in the metadata")
    if len(items) != len(lengths):
        raise BadAnswerError(f"{len(items)} results for {len(lengths)} sequences.")
    ends = [0]
    for index, (item, length) in enumerate(zip(items, lengths, strict=True)):
        shape = of_kind(list, of_kind(dict, item, "an entry of data").get("shape"), "a shape")
        width = shape[-1] if hidden_size is None and shape else hidden_size
        if type(width) is not int or width < 1 or shape != [length, width]:
            raise BadAnswerError(f"sequence {index} has states of {shape}, expected {[length, hidden_size or 'H']}.")
        ends.append(ends[-1] + length * width * dtype.itemsize)
        place = {"index": index, "start": ends[-2], "end": ends[-1]}
        for key, value in (place | {"embed_dtype": WIRE[dtype], "endianness": "little"}).items():
            if item.get(key) != value:
                raise BadAnswerError(f"sequence {index} has {key} {item.get(key)!r}, expected {value!r}.")
    if len(content) != ends[-1]:
        raise BadAnswerError(f"the answer has {len(content)} bytes, its metadata name {ends[-1]}.")
    found = []
    for start, end, length, scored in zip(ends, ends[1:], lengths, num_scored, strict=False):
        row = (end - start) // length
        kept = content[end - (1 + scored) * row : end - row]
        found.append(torch.frombuffer(bytearray(kept), dtype=dtype).view(scored, -1))
    if not all(states.isfinite().all() for states in found):
        raise BadAnswerError("hidden states that are not finite.")
    return found


def width_of(content: bytes, metadata: str, **expected: Any) -> int:
    """H, from an answer to a sequence of two tokens."""
    return read_states(content, metadata, [2], [1], **expected)[0].size(1)
