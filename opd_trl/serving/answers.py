"""The bytes of an answer: safetensors for tensors, OpenAI's JSON for prompt log-probabilities."""

import json
import time
import uuid
from collections.abc import Iterator, Sequence

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .scorer import PromptScores


PIECE = 1 << 20  # bytes handed to the network at a time
POSITIONS = 256  # of a prompt, turned to JSON at a time


def tensor_bytes(hidden_states: Sequence[Tensor], name: str) -> bytes:
    """Safetensors with `hidden_states` `(sum n, H)` and the model's name."""
    return save({"hidden_states": torch.cat(list(hidden_states))}, metadata={"model": name})


def pieces(content: bytes) -> Iterator[memoryview]:
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
