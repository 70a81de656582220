"""Sequences of all requests that wait, in one forward: whose turn it is, and to each request its own results."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from typing import Any

import torch
from fastapi import Request
from torch import Tensor

from .bodies import Refusal
from .scorer import NonFiniteScores, Scorer


#: Sequences go into a forward with one that is at most so many times as long.
SPREAD = 2


class Job:
    """A request whose sequences are scored.

    Args:
        request: its client may go away.
        field: of its body, as errors name it.
        sequences, num_scored: as `Scorer.hidden_states` takes them.
        finish: from hidden states of some sequences, and their places, to their results; in the forward's thread.

    Attributes:
        left: places of the sequences that wait, the longest first.
        results: of each sequence.
        done: set once all results are there, or with what went wrong.
    """

    def __init__(
        self,
        request: Request,
        field: str,
        sequences: Sequence[Sequence[int]],
        num_scored: Sequence[int],
        finish: Callable[[list[Tensor], list[int]], list[Any]],
    ):
        self.request, self.field, self.sequences, self.num_scored = request, field, sequences, num_scored
        self.finish = finish
        self.left = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        self.results: list[Any] = [None] * len(sequences)
        self.done = asyncio.get_running_loop().create_future()

    def refusal(self, error: Exception, rows: list[int]) -> Exception:
        """What is answered where a forward over `rows` failed."""
        if isinstance(error, NonFiniteScores):
            return Refusal(
                500,
                f"the scores of {self.field}[{rows[error.index]}] hold NaN or infinity. Start the server with --dtype "
                "bfloat16 or float32 (float16 overflows with some models), and check the checkpoint.",
            )
        if isinstance(error, torch.OutOfMemoryError):
            longest = max(len(self.sequences[i]) for i in rows)
            return Refusal(
                500,
                f"out of memory with {len(rows)} sequences of up to {longest} tokens in one forward. "
                "Start the server with a smaller --batch-tokens, --batch-size or --max-length.",
            )
        return error


#: A request and the places of some of its sequences.
Part = tuple[Job, list[int]]


class Batcher:
    """Runs one forward at a time over sequences of all requests that wait; it waits for none to come.

    Args:
        scorer: what is run.
        most_rows: sequences in a forward.
        most_tokens: tokens in a forward, with padding; a longer sequence is alone.
    """

    def __init__(self, scorer: Scorer, *, most_rows: int, most_tokens: int):
        self.scorer, self.most_rows, self.most_tokens = scorer, most_rows, most_tokens
        self.waiting: list[Job] = []  # the next one to lead a forward first
        self.thread = ThreadPoolExecutor(1)
        self.task: asyncio.Task | None = None

    async def score(self, job: Job) -> list[Any]:
        """The results of a job, in the order of its sequences.

        Raises:
            Refusal: it cannot be scored, its client has gone, or the server ends.
        """
        self.waiting.append(job)
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.run())
        try:
            return await job.done
        except asyncio.CancelledError:  # by uvicorn, which waits for so long after a signal, no longer
            raise Refusal(503, "the server is ending. Try again when it is back.", retry_after="10") from None
        finally:
            self.forget(job)

    async def run(self) -> None:
        """Run one forward after another until no request waits."""
        while self.waiting:
            parts = self.choose()
            gone = [job for job, _ in parts if await job.request.is_disconnected()]
            for job in gone:  # one that ran into its time limit asks again
                self.end(job, Refusal(499, "the client went away."))
            if gone:
                continue
            for job, rows in parts:
                job.left = [i for i in job.left if i not in rows]
            found = await asyncio.get_running_loop().run_in_executor(self.thread, self.forward, parts)
            for (job, rows), results in zip(parts, found, strict=True):
                self.settle(job, rows, results)

    def choose(self) -> list[Part]:
        """The parts of the next forward: the longest sequence of whoever leads it, and others of about its length.

        In turn, one of each request.
        """
        longest = len(self.waiting[0].sequences[self.waiting[0].left[0]])
        fitting = [
            [(job, i) for i in job.left if longest <= SPREAD * len(job.sequences[i]) <= SPREAD * longest]
            for job in self.waiting
        ]
        in_turn = (row for turn in zip_longest(*fitting) for row in turn if row is not None)
        parts: dict[Job, list[int]] = {}
        for job, i in islice(in_turn, min(self.most_rows, max(1, self.most_tokens // longest))):
            parts.setdefault(job, []).append(i)
        self.waiting.append(self.waiting.pop(0))
        return list(parts.items())

    def forward(self, parts: list[Part]) -> list[list[Any] | Exception]:
        """For each part its results or what went wrong with it: where all together fail, each is tried by itself."""
        sequences = [job.sequences[i] for job, rows in parts for i in rows]
        num_scored = [job.num_scored[i] for job, rows in parts for i in rows]
        try:
            states = iter(self.scorer.hidden_states(sequences, num_scored))
        except Exception as error:
            if len(parts) == 1:
                return [error]
            states = None
        if states is None:  # outside of the handler, where the error no longer holds the tensors of its forward
            return [found for part in parts for found in self.forward([part])]
        return [finished(job, list(islice(states, len(rows))), rows) for job, rows in parts]

    def settle(self, job: Job, rows: list[int], results: list[Any] | Exception) -> None:
        """Hand a job what a forward has found of `rows`."""
        if isinstance(results, Exception):
            self.end(job, job.refusal(results, rows))
            return
        for i, result in zip(rows, results, strict=True):
            job.results[i] = result
        if not job.left:
            self.end(job, None)

    def end(self, job: Job, error: Exception | None) -> None:
        """Answer a job, whose remaining sequences are not scored."""
        self.forget(job)
        if job.done.done():  # nobody waits for it any more
            return
        if error is None:
            job.done.set_result(job.results)
        else:
            job.done.set_exception(error)

    def forget(self, job: Job) -> None:
        """Let a job wait no longer."""
        if job in self.waiting:
            self.waiting.remove(job)


def finished(job: Job, states: list[Tensor], rows: list[int]) -> list[Any] | Exception:
    """The results of a part, or what went wrong with it: any error is the answer of this request alone."""
    try:
        return job.finish(states, rows)
    except Exception as error:
        return error
