"""What the routes of a teacher do: read, have it scored beside other requests, answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from torch import Tensor

from .answers import PIECE, CompletionsAnswer, PromptScores, pieces_of, safetensors
from .batching import Batcher, Job
from .bodies import check_requested, too_long
from .reader import CompletionsQuery, Reader, Rules, read_completions, read_hidden_states
from .scorer import Scorer, check_finite


BINARY, JSON = "application/octet-stream", "application/json"
UNREAD = 1 << 31  # bytes of answers that wait for their clients to read them; one alone may be larger
SCORE_BYTES = 20  # of an id that is scored: itself, its log-probability and its rank
CHARACTERS = 4  # a text of so many for each token that fits is tokenized in one go


@dataclass(frozen=True)
class Limits:
    """How much at a time: sequences and tokens in a forward, and what a request and all of them together may ask."""

    batch_size: int
    batch_tokens: int
    max_sequences: int
    max_log_probs: int
    max_concurrent_requests: int
    max_request_mib: int


class Room:
    """Bytes of memory that answers may take."""

    def __init__(self, most: int):
        self.most, self.taken, self.given_back = most, 0, asyncio.Event()
        self.in_order = asyncio.Lock()

    async def take(self, size: int) -> None:
        """Wait until there is room, or nothing else; who came first goes first."""
        async with self.in_order:
            while self.taken and self.taken + size > self.most:
                self.given_back.clear()
                await self.given_back.wait()
            self.taken += size

    def give_back(self, size: int) -> None:
        """Free bytes that `take` has taken."""
        self.taken -= size
        self.given_back.set()


class Answer(StreamingResponse):
    """Pieces as fast as the client reads them; `done` is called at the end, however it comes."""

    def __init__(self, pieces: AsyncIterator[bytes], media_type: str, *, size: int | None = None, done=lambda: None):
        headers = None if size is None else {"content-length": str(size)}
        super().__init__(pieces, media_type=media_type, headers=headers)
        self.done = done

    async def __call__(self, scope, receive, send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.done()


class Service:
    """A scorer behind HTTP. `name` is that under which the model is served."""

    def __init__(self, scorer: Scorer, name: str, limits: Limits):
        self.scorer, self.name, self.limits = scorer, name, limits
        self.num_ids = scorer.num_ids
        self.rules = Rules(
            name=name,
            num_ids=self.num_ids,
            max_length=scorer.max_length,
            max_sequences=limits.max_sequences,
            max_log_probs=min(limits.max_log_probs, self.num_ids),
        )
        self.reader = Reader(self.rules)
        self.room = Room(UNREAD)
        self.batcher = Batcher(scorer, most_rows=limits.batch_size, most_tokens=limits.batch_tokens)
        # More threads that run Python would keep the event loop waiting for its turn.
        self.aside = ThreadPoolExecutor(2)

    async def head(self, _: Request) -> Response:
        """GET /v1/head: safetensors of the LM head, straight from the model, with no copy in a file."""
        size, pieces = self.scorer.head_file({"model": self.name})
        return Answer(self.in_pieces(pieces), BINARY, size=size)

    async def whole(self, content: bytes) -> Response:
        """An answer of JSON that was made when the server started."""
        return Answer(self.in_pieces(pieces_of(content)), JSON, size=len(content))

    async def hidden_states(self, request: Request) -> Response:
        """POST /v1/hidden_states: safetensors with the states that predict the last tokens of each sequence."""
        query = await self.reader.read(read_hidden_states, await request.body())
        weight = self.scorer.head.weight
        size = sum(query.num_scored) * weight.size(1) * weight.element_size()

        def finish(states: list[Tensor], rows: list[int]) -> list[Tensor]:
            check_finite(states)
            return [x.to("cpu", copy=True) for x in states]

        job = Job(request, "sequences", query.sequences, query.num_scored, finish)
        hidden_states = await self.scored(job, size)
        length, pieces = safetensors({"hidden_states": hidden_states}, {"model": self.name})
        return self.answer(pieces, BINARY, size, length)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions: log-probabilities of each token of the prompts, as JSON in the form of vLLM's."""
        query = await self.reader.read(read_completions, await request.body())
        if any(isinstance(prompt, str) for prompt in query.prompts):
            query = query._replace(prompts=await self.run(self.aside, self.tokenized, query))
        prompts, requested = query.prompts, query.requested
        check_requested(requested, prompts)
        width = max((max(ids.counts) for ids in requested or ()), default=0)
        size = sum(map(len, prompts)) * (1 + width + query.top_k) * SCORE_BYTES

        def finish(states: list[Tensor], rows: list[int]) -> list[PromptScores]:
            return self.scorer.prompt_scores(
                states,
                [prompts[i] for i in rows],
                top_k=query.top_k,
                requested=None if requested is None else [requested[i] for i in rows],
                temperature=query.temperature,
            )

        job = Job(request, "prompt", prompts, [len(ids) - 1 for ids in prompts], finish)
        scores = await self.scored(job, size)
        return self.answer(iter(CompletionsAnswer(self.name, prompts, scores, self.scorer.tokenizer)), JSON, size)

    def tokenized(self, query: CompletionsQuery) -> list[Sequence[int]]:
        """The prompts as ids, texts tokenized one by one."""
        return [
            self.rules.ids(f"prompt[{i}]", self.encode(f"prompt[{i}]", prompt)) if isinstance(prompt, str) else prompt
            for i, prompt in enumerate(query.prompts)
        ]

    def encode(self, place: str, text: str) -> list[int]:
        """The ids of a text. Of a long one the start is tried first: 15 MiB would take a minute and gigabytes."""
        most, size = self.scorer.max_length, CHARACTERS * self.scorer.max_length
        while size < len(text):
            # The last word may be cut, into more tokens than it has.
            if len(self.scorer.tokenizer.encode(text[:size])) > most + CHARACTERS * CHARACTERS:
                raise too_long(place, f"more than {most} tokens in its first {size} characters", most)
            size *= 2
        return self.scorer.tokenizer.encode(text)

    async def run(self, executor: ThreadPoolExecutor, function: Callable, *args: Any) -> Any:
        """A call in another thread; cancelled, it is not waited for."""
        return await asyncio.get_running_loop().run_in_executor(executor, function, *args)

    async def in_pieces(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Each piece, made in another thread."""
        while len(piece := await self.run(self.aside, next, pieces, b"")):
            yield piece

    def answer(self, pieces: Iterator[bytes], media_type: str, size: int, length: int | None = None) -> Response:
        """What was scored; a small answer is handed over at once, a large one holds its `size` bytes of room."""
        if size <= PIECE:
            self.room.give_back(size)
            return Response(b"".join(pieces), media_type=media_type)
        done = lambda: self.room.give_back(size)  # noqa: E731
        return Answer(self.in_pieces(pieces), media_type, size=length, done=done)

    async def scored(self, job: Job, size: int) -> list[Any]:
        """The results of a job, which have taken `size` bytes of the room."""
        await self.room.take(size)
        try:
            return await self.batcher.score(job)
        except BaseException:
            self.room.give_back(size)
            raise
