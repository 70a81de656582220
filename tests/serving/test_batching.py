"""Requests of several clients in one forward: whose turn it is, what is dropped, and whose numbers are whose."""

import asyncio
import threading
from collections.abc import Callable

import pytest
import torch
from fastapi import Request

from opd_trl.serving.batching import Batcher, Job
from opd_trl.serving.bodies import Refusal
from opd_trl.serving.scorer import Scorer, check_finite
from tests import tiny


PATIENCE = 20  # seconds
BAD = 98  # an id that a forward fails on


class Watched:
    """A scorer that keeps the rows of every forward, and holds the first one until it may go on."""

    def __init__(self, model):
        self.scorer, self.forwards, self.go = Scorer(model, None, 512), [], threading.Event()

    def hidden_states(self, sequences, num_scored):
        self.forwards.append([list(ids) for ids in sequences])
        if len(self.forwards) == 1:
            assert self.go.wait(PATIENCE)
        if any(BAD in ids for ids in sequences):
            raise torch.OutOfMemoryError
        return self.scorer.hidden_states(sequences, num_scored)

    async def has_begun(self) -> None:
        while not self.forwards:
            await asyncio.sleep(0.001)


@pytest.fixture(scope="module")
def model():
    model = tiny.build_model(seed=1).eval()
    model.model.embed_tokens.weight.data[99] = float("nan")
    return model


def request(*, gone: bool = False) -> Request:
    """A request whose client has gone, or else says nothing more."""

    async def receive() -> dict[str, str]:
        if not gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


def job_of(*rows: list[int], gone: bool = False) -> Job:
    """One that asks for the states of all tokens of its rows."""

    def finish(states: list[torch.Tensor], _: list[int]) -> list[torch.Tensor]:
        check_finite(states)
        return states

    return Job(request(gone=gone), "sequences", rows, [len(row) - 1 for row in rows], finish)


def play(model, jobs: Callable[[], list[Job]], *, most_rows: int = 64, most_tokens: int = 4096):
    """Score jobs that come while a forward over `[5, 5]` runs; return what each is answered, and later forwards."""
    scorer = Watched(model)

    async def all_of_them():
        batcher = Batcher(scorer, most_rows=most_rows, most_tokens=most_tokens)
        first = asyncio.create_task(batcher.score(job_of([5, 5])))
        await scorer.has_begun()
        waiting = [asyncio.create_task(batcher.score(job)) for job in jobs()]
        await asyncio.sleep(0)
        scorer.go.set()
        found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), PATIENCE)
        await first
        assert batcher.waiting == []
        return found

    return asyncio.run(all_of_them()), scorer.forwards[1:]


@torch.no_grad()
def check(model, found: list[torch.Tensor], *rows: list[int]) -> None:
    """The numbers of a lone request, to 1e-5 in float32."""
    for states, row in zip(found, rows, strict=True):
        expected = model.model(input_ids=torch.tensor([row])).last_hidden_state[0, :-1]
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)


def test_all_that_wait_go_into_one_forward_and_each_is_answered_its_own(model):
    requests = [[[5, 6, 7]], [[8, 9, 10, 11], [6, 7]], [[5, 6, 7], [20, 21, 22]]]
    found, forwards = play(model, lambda: [job_of(*rows) for rows in requests])
    assert len(forwards) == 2  # what is less than half as long as the longest of the first one waits
    for states, rows in zip(found, requests, strict=True):
        check(model, states, *rows)


def test_what_many_begin_with_is_shared_between_clients(model):
    head = [10 + i % 60 for i in range(80)]
    requests = [[[*head, 5, 6, 7]], [[*head, 5, 6, 8], [*head, 9]], [[*head[:70], 6, 6]]]
    for _ in range(2):
        found, forwards = play(model, lambda: [job_of(*rows) for rows in requests])
        assert len(forwards) == 1
        for states, rows in zip(found, requests, strict=True):
            check(model, states, *rows)


def test_a_forward_has_at_most_so_many_rows_and_tokens(model):
    lengths = [10, 9, 8, 12, 11, 30, 7]
    rows = [[5 + i] * n for i, n in enumerate(lengths)]
    for limits in ({"most_rows": 2}, {"most_tokens": 24}):
        found, forwards = play(model, lambda: [job_of(*rows[:5]), job_of(*rows[5:])], **limits)
        check(model, [*found[0], *found[1]], *rows)
        sizes = [(len(x), len(x) * max(map(len, x))) for x in forwards]
        assert all(count <= 2 and (size <= 24 or count == 1 or "most_rows" in limits) for count, size in sizes)
        assert sorted(len(row) for forward in forwards for row in forward) == sorted(lengths)
        # No padding to speak of: nobody is beside one that is more than twice as long.
        assert all(max(map(len, x)) <= 2 * min(map(len, x)) for x in forwards)


def test_a_small_request_does_not_wait_for_all_rows_of_a_large_one(model):
    large, small, short = [[5] * 8] * 20, [[6] * 8], [[7, 7]]
    _, forwards = play(model, lambda: [job_of(*large), job_of(*small), job_of(*short)], most_rows=4)
    assert small[0] in forwards[0]  # beside the large one
    assert any(short[0] in forward for forward in forwards[:3])  # in its turn
    assert len(forwards) == 7


def test_who_has_gone_is_dropped(model):
    found, forwards = play(model, lambda: [job_of([5, 6, 7], gone=True), job_of([6, 7, 8])])
    assert isinstance(found[0], Refusal)
    assert found[0].status == 499
    check(model, found[1], [6, 7, 8])
    assert forwards == [[[6, 7, 8]]]


def test_a_request_that_fails_leaves_its_neighbours_alone(model):
    good = [[[5, 6, 7]], [[8, 9, 10], [11, 12, 13]]]
    for bad, text in (
        ([7, BAD, 7], "out of memory with 2 sequences of up to 3 tokens"),
        ([7, 99, 7], "sequences[1]"),
    ):
        found, _ = play(model, lambda bad=bad: [job_of(*good[0]), job_of([6, 6, 6], bad), job_of(*good[1])])
        check(model, found[0], *good[0])
        check(model, found[2], *good[1])
        assert found[1].status == 500
        assert text in found[1].message


def test_whoever_is_cancelled_is_told_that_the_server_ends_and_is_not_scored(model):
    scorer = Watched(model)

    async def cancelled() -> Refusal:
        batcher = Batcher(scorer, most_rows=64, most_tokens=4096)
        tasks = [asyncio.create_task(batcher.score(job_of(ids))) for ids in ([5, 5], [6, 6, 6, 6, 6])]
        await scorer.has_begun()
        tasks[1].cancel()
        (refusal,) = await asyncio.gather(tasks[1], return_exceptions=True)
        scorer.go.set()
        await tasks[0]
        await batcher.task
        return refusal

    refusal = asyncio.run(cancelled())
    assert (refusal.status, refusal.headers) == (503, {"retry-after": "10"})
    assert scorer.forwards == [[[5, 5]]]
