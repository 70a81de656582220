"""The gate alone, with requests that a test plays itself."""

import asyncio
import json

import pytest

from opd_trl.serving import gate
from opd_trl.serving.gate import Gate


async def echo(scope, receive, send):
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def ask(parts: list[bytes | None], *, then_silent: bool = False, headers=(), **options) -> tuple[int, bytes, int]:
    """Send a body in parts, None for a lost connection; return status, answer, and how many parts were read."""
    app = Gate(echo, **{"api_key": None, "max_concurrent": 1, "max_bytes": 10} | options)
    left, sent = list(parts), []

    async def receive():
        if not left and then_silent:
            await asyncio.sleep(60)
        part = left.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(left) or then_silent}

    async def send(message):
        assert not app.in_flight  # whoever has an answer finds a place
        sent.append(message)

    scope = {"type": "http", "path": "/v1/completions", "headers": list(headers)}
    asyncio.run(app(scope, receive, send))
    assert not app.in_flight
    return sent[0]["status"], sent[1]["body"], len(parts) - len(left)


def test_a_body_within_the_limit_arrives_whole():
    assert ask([b"abc", b"defg", b"", b"hij"])[:2] == (200, b"abcdefghij")
    assert ask([b""])[:2] == (200, b"")


def test_what_is_too_large_is_dropped_up_to_a_multiple_of_the_limit():
    assert ask([b"x" * 11])[::2] == (413, 1)
    assert ask([b"x" * 5] * 4)[::2] == (413, 4)  # to its end: the client reads the answer
    assert ask([b"x" * 5] * 1000)[::2] == (413, 9)  # and no further than 4 times the limit
    assert ask([b"x"] * 3, headers=[(b"content-length", b"11")])[::2] == (413, 3)


@pytest.mark.parametrize("options", [{"api_key": "k"}, {"max_concurrent": 0}])
def test_who_is_turned_away_is_read_to_the_end_and_kept_nowhere(options):
    status, answer, parts_read = ask([b"x" * 5] * 3, **options)
    assert status == (401 if "api_key" in options else 503)
    assert json.loads(answer)["error"]["code"] == status
    assert parts_read == 3


@pytest.mark.parametrize("options", [{}, {"api_key": "k"}])
def test_a_client_that_falls_silent_in_the_middle_gives_its_place_back(monkeypatch, options):
    monkeypatch.setattr(gate, "BODY_TIME_LIMIT", 0.05)
    monkeypatch.setattr(gate, "REFUSED_TIME_LIMIT", 0.05)
    status, answer, _ = ask([b"abc"], then_silent=True, **options)
    assert status == 408
    assert "did not arrive within" in json.loads(answer)["error"]["message"]


def test_a_request_that_ends_in_the_middle_is_not_passed_on():
    assert ask([b"abc", None])[0] == 499
