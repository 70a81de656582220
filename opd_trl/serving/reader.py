"""From the bytes of a request to checked numbers: small ones here, large ones in a process of their own.

Python reads a JSON of 16 MiB in one go, for up to ten seconds in which no other thread runs and `/health` is silent.
"""

import asyncio
import multiprocessing
import signal
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from .bodies import (
    CompletionsBody,
    HiddenStatesBody,
    Refusal,
    Requested,
    as_prompts,
    check_completions,
    check_count,
    check_model,
    check_num_scored,
    check_sequence,
    parse,
    read_requested,
)


SMALL = 1 << 16  # bytes that are read at once, in some milliseconds


@dataclass(frozen=True)
class Rules:
    """What a request may hold: the model's name, its ids and its longest sequence, and the server's limits."""

    name: str
    num_ids: int
    max_length: int
    max_sequences: int
    max_log_probs: int

    def ids(self, place: str, sequence: list[int]) -> array:
        """The checked ids of a sequence, without an object for each."""
        check_sequence(place, sequence, num_ids=self.num_ids, max_length=self.max_length)
        return array("i", sequence)


class HiddenStatesQuery(NamedTuple):
    """The sequences, and how many of the last tokens of each are scored."""

    sequences: list[array]
    num_scored: list[int]


class CompletionsQuery(NamedTuple):
    """Prompts, as ids or texts; K, how many of the most probable ids are scored; further ids; the temperature."""

    prompts: list[array | str]
    top_k: int
    requested: list[Requested] | None
    temperature: float


def read_hidden_states(content: bytes, rules: Rules) -> HiddenStatesQuery:
    """Read a body of `/v1/hidden_states`; raises Refusal."""
    body = parse(HiddenStatesBody, content)
    check_model(body.model, rules.name)
    check_count("sequences", body.sequences, rules.max_sequences)
    sequences = [rules.ids(f"sequences[{i}]", ids) for i, ids in enumerate(body.sequences)]
    check_num_scored(body.num_scored, sequences)
    return HiddenStatesQuery(sequences, body.num_scored)


def read_completions(content: bytes, rules: Rules) -> CompletionsQuery:
    """Read a body of `/v1/completions`; raises Refusal."""
    body = parse(CompletionsBody, content)
    check_model(body.model, rules.name)
    top_k = check_completions(body, rules.max_log_probs)
    prompts = as_prompts(body.prompt)
    check_count("prompt", prompts, rules.max_sequences)
    prompts = [x if isinstance(x, str) else rules.ids(f"prompt[{i}]", x) for i, x in enumerate(prompts)]
    requested = read_requested(
        body.prompt_logprob_ids, len(prompts), num_ids=rules.num_ids, max_log_probs=rules.max_log_probs
    )
    return CompletionsQuery(prompts, top_k, requested, body.temperature)


class Reader:
    """Reads bodies by `rules`; those above `SMALL` one at a time in a child process, which ends with this one."""

    def __init__(self, rules: Rules):
        self.rules = rules
        self.thread = ThreadPoolExecutor(1)
        self.child: tuple[multiprocessing.Process, Connection] | None = None

    async def read(self, function: Callable[[bytes, Rules], Any], content: bytes) -> Any:
        """`function(content, rules)`; raises what it raises, and Refusal 503 where the child is killed."""
        if len(content) <= SMALL:
            return function(content, self.rules)
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.ask, function, content)

    def ask(self, function: Callable[[bytes, Rules], Any], content: bytes) -> Any:
        """The same in the child."""
        if self.child is None:
            spawn = multiprocessing.get_context("spawn")
            pipe, end = spawn.Pipe()
            process = spawn.Process(target=work, args=(end, self.rules), daemon=True)
            process.start()
            end.close()
            self.child = process, pipe
        process, pipe = self.child
        try:
            pipe.send((function, content))
            result = pipe.recv()
        except (EOFError, OSError):
            self.child = None
            process.join()
            message = f"the process that reads large requests was ended (exit status {process.exitcode}). Try again."
            raise Refusal(503, message, retry_after="1") from None
        if isinstance(result, Exception):
            raise result
        return result


def work(pipe: Connection, rules: Rules) -> None:
    """Answer each `(function, content)` with the result or the exception, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    while True:
        try:
            function, content = pipe.recv()
        except EOFError:
            return
        try:
            result = function(content, rules)
        except Exception as error:
            result = error
        del content
        pipe.send(result)
        del result
