"""SGLang's `/generate` on the wire: hidden states as JSON. From the source of 0.5.23, never run against a server."""

import json
from typing import Any

import torch
from torch import Tensor

from ..connections import BadAnswerError
from ..server_answers import of_kind


#: Its name in the list of models.
OWNER = "sglang"
PATH, HEADER = "/generate", None
#: Bytes of a number at most: the digits of a double, sign, point, exponent, comma.
NUMBER = 26
#: Sequences in a request: its source has no limit.
MOST_SEQUENCES = None
#: In a refusal after which it is not another kind of server: in every one.
OTHER_TASK = ("",)


def request(model: str, sequences: list[list[int]], num_scored: list[int], dtype: torch.dtype) -> dict[str, Any]:
    """The body that asks for the hidden states that predict the last `num_scored[i]` tokens of each sequence.

    States of tokens that its prefix cache holds are not in the answer: asking for log-probabilities from a token on
    keeps the cache to what stands before it. With 0 new tokens there are none at all. It has one model and one dtype.
    """
    return {
        "input_ids": sequences,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
        "return_hidden_states": True,
        "return_logprob": True,
        "logprob_start_len": [len(ids) - scored - 1 for ids, scored in zip(sequences, num_scored, strict=True)],
    }


def read_states(
    content: bytes,
    lengths: list[int],
    num_scored: list[int],
    *,
    model: str,
    dtype: torch.dtype,
    hidden_size: int | None = None,
) -> list[Tensor]:
    """Check an answer and take the hidden states `(num_scored[i], H)`; as `pooling.read_states`.

    Raises:
        BadAnswerError: another number of sequences, tokens or rows than asked for, another width, NaN or infinity.
    """
    answers = of_kind(list, json.loads(content), "the answer")
    if len(answers) != len(lengths):
        raise BadAnswerError(f"{len(answers)} answers for {len(lengths)} sequences.")
    found = []
    for index, (answer, length, scored) in enumerate(zip(answers, lengths, num_scored, strict=True)):
        meta = of_kind(dict, of_kind(dict, answer, "an answer").get("meta_info"), "meta_info")
        if meta.get("prompt_tokens") != length:
            raise BadAnswerError(
                f"it read {meta.get('prompt_tokens')} tokens of sequence {index}, which has {length}."
            )
        blocks = of_kind(list, meta.get("hidden_states"), "hidden_states")
        rows = of_kind(list, blocks[0] if blocks else None, "the hidden states of the prompt")
        if not scored < len(rows) <= length:
            raise BadAnswerError(
                f"{len(rows)} states of the {length} tokens of sequence {index}, whose last {scored + 1} are needed. "
                "Those of the last chunk alone are sent: start SGLang with --chunked-prefill-size -1."
            )
        states = torch.tensor(rows[-scored - 1 : -1], dtype=dtype)
        if states.ndim != 2 or hidden_size not in (None, states.size(1)):
            raise BadAnswerError(f"states of {tuple(states.shape)}, expected {(scored, hidden_size or 'H')}.")
        if not states.isfinite().all():
            raise BadAnswerError("hidden states that are not finite.")
        found.append(states)
    return found


def width_of(content: bytes, **expected: Any) -> int:
    """H, from an answer to a sequence of two tokens."""
    return read_states(content, [2], [1], **expected)[0].size(1)
