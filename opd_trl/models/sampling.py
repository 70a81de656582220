"""What is asked of a model and what comes back, whatever generates."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        temperature: 0 decodes greedily.
        top_p: nucleus sampling; 1 keeps every token.
        top_k: 0 keeps every token.
        max_new_tokens: longest answer.
    """

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


class Completion(NamedTuple):
    """One sampled answer.

    Args:
        text: special tokens removed.
        num_tokens: with the end token, where there is one.
        finished: did it end by itself? False: it was cut at `max_new_tokens`.
    """

    text: str
    num_tokens: int
    finished: bool


class Engine(Protocol):
    """Something that completes prompts.

    Attributes:
        name: "transformers" or "vllm".
        batch_size: prompts that are best given together.
        context_length: most tokens of prompt and answer together; None where the model does not say.
    """

    name: str
    batch_size: int
    context_length: int | None

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One answer for each prompt, given as token ids, drawn with its own seed as far as the engine can."""
        ...


def derived_seed(*parts: object) -> int:
    """A seed of 31 bits from anything that prints; the same on every machine.

    >>> derived_seed(0, "a problem", 3) == derived_seed(0, "a problem", 3) != derived_seed(1, "a problem", 3)
    True
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
