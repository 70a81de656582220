"""A teacher behind HTTP: `opd-trl serve-teacher`, vLLM's pooling runner, SGLang, or completions like vLLM's."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..losses.head import Head
from ..models.forward import token_log_probs
from .connections import SMALL
from .server_answers import (
    SequenceLogProbs,
    json_of,
    read_completions,
    read_head,
    read_models,
    read_tensors,
    read_tokens,
    read_vocabulary,
)
from .transport import TeacherServerError, Transport
from .wire import pooling, sglang


logger = logging.getLogger(__name__)

OURS = "opd_trl"
#: Text whose tokens ask a server at start what it serves.
PROBE_TEXT = (
    "The sum of the first 10 odd numbers is 1 + 3 + ... + 19 = 100, because\n  n**2 == 100  # n = 10\n"
    'Zürich, naïve café, 東京, Привет! "Quotes", tabs\tand\n\nblank lines.'
)
#: Mean difference in nats between two log-probabilities of one token up to which it counts as the same model. Noise
#: of bfloat16 was measured at 0.05 to 0.08, another model's difference is above 1.
SAME_MODEL = 0.3
#: Bytes of a float32, the widest number that a server sends.
FLOAT = 4
#: Bytes of the largest vocabulary that is taken: 2^18 tokens of 256.
VOCABULARY = 1 << 26
#: Hidden size of the widest model that is taken; Llama 3.1 405B has 16384.
WIDEST = 1 << 14
#: Bytes of JSON for one id at one position: two numbers and the text of a token, which can be a long run of spaces.
ENTRY = 512


class TeacherServer:
    """Scores token sequences over HTTP; knows four kinds of server.

    `opd-trl serve-teacher` sends hidden states, and its LM head once: every support, the same numbers as a teacher
    in this process. vLLM's pooling runner (`POST /pooling`) and SGLang (`POST /generate`) send hidden states too, and
    no head. A server with vLLM's `/v1/completions` (vLLM itself, `trl vllm-serve`) sends the TopK log-probabilities
    at temperature 1.

    Args:
        url: root of the server.
        api_key, timeout, retries, backoff, concurrency: see `Transport`.

    Attributes:
        model: its name there.
        max_length: longest sequence in tokens, or None where the server does not say.
        is_ours: is it `opd-trl serve-teacher`?
        pooled_size: H of the hidden states of vLLM's pooling runner or of SGLang; None where it is another kind.

    Raises:
        TeacherServerError: it is not reached, does not say what it serves, or pools something else than tokens.
    """

    def __init__(self, url: str, **options: Any):
        self._probe: tuple[Callable[..., Tensor], Tensor] | None = None
        self.transport = Transport(url, on_return=self._check_same_model, **options)
        self.url = self.transport.url
        what = "the list of its models"
        self.model, self.max_length, owner = self.transport.call("/v1/models", read_models, what=what, most=SMALL)
        self.is_ours = owner == OURS
        self._wire = sglang if owner == sglang.OWNER else pooling
        self.pooled_size = None if self.is_ours else self._ask_pooled_size()

    @property
    def sends_hidden_states(self) -> bool:
        """Does it send hidden states, and not log-probabilities?"""
        return self.is_ours or self.pooled_size is not None

    # Scores

    def log_probs(
        self,
        sequences: list[list[int]],
        num_scored: list[int],
        *,
        top_k: int,
        vocab_size: int,
        what: str = "a request",
        verify: bool = True,
    ) -> list[SequenceLogProbs]:
        """TopK log-probabilities of the last `num_scored[i]` tokens of each sequence, in one request.

        Raises:
            TeacherServerError: see `Transport.call`; the message says `what` was asked.
        """
        # The temperature would be that of sampling; vLLM's prompt log-probs are at 1 whatever it is.
        body = {
            "model": self.model,
            "prompt": sequences,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": top_k,
        }

        def check(content: bytes) -> list[SequenceLogProbs]:
            return read_completions(
                json_of(content), sequences, num_scored, model=self.model, top_k=top_k, vocab_size=vocab_size
            )

        most = SMALL + sum(map(len, sequences)) * (top_k + 2) * ENTRY
        return self.transport.call("/v1/completions", check, what=what, most=most, body=body, verify=verify)

    def hidden_states(
        self,
        sequences: list[list[int]],
        num_scored: list[int],
        *,
        hidden_size: int,
        dtype: torch.dtype = torch.bfloat16,
        what: str = "a request",
        verify: bool = True,
    ) -> list[Tensor]:
        """Hidden states `(num_scored[i], H)` that predict the last tokens of each sequence, in one request.

        `dtype` is theirs on the wire from vLLM's pooling runner; `opd-trl serve-teacher` sends its own.
        """
        if self.pooled_size is not None:
            lengths = list(map(len, sequences))
            expected = {"model": self.model, "dtype": dtype, "hidden_size": hidden_size}
            return self.transport.call(
                self._wire.PATH,
                partial(self._wire.read_states, lengths=lengths, num_scored=num_scored, **expected),
                header=self._wire.HEADER,
                what=what,
                most=SMALL + sum(lengths) * hidden_size * self._wire.NUMBER,
                body=self._wire.request(self.model, sequences, num_scored, dtype),
                verify=verify,
            )
        body = {"model": self.model, "sequences": sequences, "num_scored": num_scored}
        shapes = {"hidden_states": (sum(num_scored), hidden_size)}

        def check(content: bytes) -> list[Tensor]:
            return list(read_tensors(content, shapes)["hidden_states"].split(num_scored))

        most = SMALL + sum(num_scored) * hidden_size * FLOAT
        return self.transport.call("/v1/hidden_states", check, what=what, most=most, body=body, verify=verify)

    def head(self, *, num_rows: int) -> Head:
        """The LM head, which may have a quarter more rows than the student's `num_rows`: padding."""
        most = SMALL + 5 * num_rows // 4 * (WIDEST + 1) * FLOAT
        return self.transport.call("/v1/head", read_head, what="its LM head", most=most)

    # What it serves

    @property
    def most_sequences(self) -> int | None:
        """Most sequences in a request; None where the server does not limit them."""
        return None if self.pooled_size is None else self._wire.MOST_SEQUENCES

    def vocabulary(self) -> dict[str, int]:
        """Token -> id, of `opd-trl serve-teacher`."""
        return self.transport.call("/v1/vocabulary", read_vocabulary, what="its vocabulary", most=VOCABULARY)

    def tokenize(self, text: str) -> list[int] | None:
        """Ids of a text without special tokens, or None where the server has no such endpoint."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            return self.transport.call("/tokenize", read_tokens, what="tokens of a text", most=SMALL, body=body)
        except TeacherServerError as error:
            if error.status in (404, 405):
                return None
            raise

    def probe(self, sequence: list[int], *, top_k: int, vocab_size: int, head: Head | None = None) -> Tensor:
        """Log-probabilities `(n - 1,)` of a sequence's tokens, kept to recognise the model after a lost connection.

        `head` is that of a server that sends hidden states and no head, and is not asked for log-probabilities.

        Raises:
            TeacherServerError: the server gives no such log-probabilities, or not so many.
        """

        def ask(top_k: int, what: str, **options: bool) -> Tensor:
            asked = [sequence], [len(sequence) - 1]
            if self.pooled_size is not None:
                expected = {"hidden_size": head.weight.size(1), "dtype": head.weight.dtype}
                (states,) = self.hidden_states(*asked, what=what, **expected, **options)
                return log_probs_of(states, head, sequence)
            (scores,) = self.log_probs(*asked, top_k=top_k, vocab_size=vocab_size, what=what, **options)
            return scores.sampled_log_probs

        found = ask(top_k, f"{top_k} log-probabilities for each of {len(sequence)} tokens (the probe at start)")
        self._probe = (ask, found)
        return found

    def _ask_pooled_size(self) -> int | None:
        """H of the states that it sends; None where it has no endpoint for them."""
        dtype = torch.bfloat16
        try:
            return self.transport.call(
                self._wire.PATH,
                partial(self._wire.width_of, model=self.model, dtype=dtype),
                header=self._wire.HEADER,
                what="the hidden states of two tokens",
                most=SMALL,
                body=self._wire.request(self.model, [[0, 0]], [1], dtype),
            )
        except TeacherServerError as error:
            if error.status is None or any(words in str(error) for words in self._wire.OTHER_TASK):
                raise
            return None

    def _check_same_model(self) -> None:
        """After a lost connection: does the probe still get the answer that it got at start?"""
        if self._probe is None:
            return
        ask, expected = self._probe
        difference = (ask(1, "the probe again", verify=False) - expected).abs().mean().item()
        if not difference <= SAME_MODEL:
            raise TeacherServerError(
                f"teacher server {self.url} came back with another model: its log-probabilities of the probe differ "
                f"by {difference:.2f} nats a token from those at start. Serve {self.model} again, as it was."
            )
        logger.warning(f"teacher server {self.url} is back, with the same model ({difference:.3f} nats a token).")


def log_probs_of(hidden_states: Tensor, head: Head, sequence: list[int]) -> Tensor:
    """Log-probabilities `(n - 1,)` of a sequence's tokens from hidden states `(n - 1, H)`."""
    device = head.weight.device
    log_probs, _ = token_log_probs(hidden_states.to(device), head, torch.tensor(sequence[1:], device=device))
    return log_probs.cpu()
