"""The bytes of an answer: safetensors for tensors, OpenAI's JSON for prompt log-probabilities."""

import functools
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedTokenizerBase


PIECE = 1 << 20  # bytes handed to the network at a time
POSITIONS = 256  # of a prompt, turned to JSON at a time


class PromptScores(NamedTuple):
    """The scored ids of N positions: `ids`, `log_probs`, `ranks`, each `(N, M)` on the CPU, the actual token first.

    A row may hold an id twice.
    """

    ids: Tensor
    log_probs: Tensor
    ranks: Tensor


def safetensors(parts: dict[str, Sequence[Tensor]], metadata: dict[str, str]) -> tuple[int, Iterator[memoryview]]:
    """Tensors in the form of safetensors, in pieces, so that no copy of all of them is made.

    Args:
        parts: of each tensor by its name, along its first dimension, on any device.
        metadata: texts.

    Returns:
        Bytes of all pieces, and the pieces, of `PIECE` bytes or a row each.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, rows in parts.items():
        start, end = end, end + sum(x.numel() * x.element_size() for x in rows)
        shape = [sum(map(len, rows)), *rows[0].shape[1:]]
        header[name] = {"dtype": dtype_name(rows[0].dtype), "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text

    def pieces() -> Iterator[memoryview]:
        yield memoryview(head)
        for x in (x for rows in parts.values() for x in rows if x.numel()):
            for rows in x.detach().split(max(1, PIECE * len(x) // (x.numel() * x.element_size()))):
                yield rows.cpu().contiguous().flatten().view(torch.uint8).numpy().data

    return len(head) + end, pieces()


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in safetensors, as the library writes it.

    >>> dtype_name(torch.bfloat16)
    'BF16'
    """
    return json.loads(save({"x": torch.empty(0, dtype=dtype)})[8:])["x"]["dtype"]


def pieces_of(content: bytes) -> Iterator[memoryview]:
    """`content` in parts of `PIECE` bytes, so that the server waits for a slow client between two of them."""
    view = memoryview(content)
    for start in range(0, len(content), PIECE):
        yield view[start : start + PIECE]


class CompletionsAnswer:
    """The JSON of `/v1/completions`, made while it is sent: whole, it can take gigabytes."""

    def __init__(
        self,
        name: str,
        prompts: Sequence[Sequence[int]],
        scores: Sequence[PromptScores],
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.name, self.prompts, self.scores, self.tokenizer = name, prompts, scores, tokenizer
        self.texts: dict[int, str] = {}

    def __iter__(self) -> Iterator[bytes]:
        start = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
        }
        yield f'{json.dumps(start)[:-1]}, "choices": ['.encode()
        for index, (ids, scores) in enumerate(zip(self.prompts, self.scores, strict=True)):
            yield from self.choice(index, ids, scores)
        num_tokens = sum(map(len, self.prompts))
        usage = {"prompt_tokens": num_tokens, "completion_tokens": 0, "total_tokens": num_tokens}
        yield f'], "usage": {json.dumps(usage)}}}'.encode()

    def choice(self, index: int, ids: Sequence[int], scores: PromptScores) -> Iterator[bytes]:
        """One prompt; nothing is scored at its first token."""
        choice = {"index": index, "text": "", "finish_reason": "length", "logprobs": None}
        choice["prompt_token_ids"] = list(ids)
        yield f'{", " if index else ""}{json.dumps(choice)[:-1]}, "prompt_logprobs": [null'.encode()
        for start in range(0, len(ids) - 1, POSITIONS):
            rows = (part[start : start + POSITIONS].tolist() for part in scores)
            yield "".join(", " + self.position(*row) for row in zip(*rows, strict=True)).encode()
        yield b"]}"

    def position(self, ids: list[int], log_probs: list[float], ranks: list[int]) -> str:
        """The scored ids of one position, each once. Nine digits give a float32 back exactly."""
        entries = {
            token: f'"{token}": {{"logprob": {log_prob:.9g}, "rank": {rank}, "decoded_token": {self.text(token)}}}'
            for token, log_prob, rank in zip(ids, log_probs, ranks, strict=True)
        }
        return f"{{{', '.join(entries.values())}}}"

    def text(self, token: int) -> str:
        """The text of a token as a JSON string, decoded once."""
        if token not in self.texts:
            self.texts[token] = json.dumps(self.tokenizer.decode([token]))
        return self.texts[token]
