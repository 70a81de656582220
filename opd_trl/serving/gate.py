"""What every request passes before it is looked at: the key, how many at a time, how many bytes."""

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .bodies import Refusal
from .http_limits import LET_IN, has_no_length


# Seconds for a client to send its request: one that went away in the middle must not keep its place for ever.
BODY_TIME_LIMIT = 120
# The same for one that is refused already: who has no key keeps nothing for long.
REFUSED_TIME_LIMIT = 30
# What is refused is read to its end, up to this multiple of the largest body, and dropped. A connection closed on
# unread bytes is reset, and the client would see the reset in place of the answer.
DRAINED = 4


class Gate:
    """ASGI middleware that lets requests in by key, number and size; `/health` always.

    Args:
        app: what is behind.
        api_key: the key that `Authorization: Bearer KEY` must carry; None asks for none.
        max_concurrent: most requests between their headers and their answer; `Connection` bounds how long one is read.
        max_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, max_concurrent: int, max_bytes: int):
        self.app, self.api_key = app, api_key
        self.max_concurrent, self.max_bytes = max_concurrent, max_bytes
        self.in_flight: set[int] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)

        async def send_and_leave(message: Message) -> None:
            """The place is free when the answer is there: whoever has it and asks again at once finds one."""
            self.in_flight.discard(id(scope))
            await send(message)

        try:
            refusal = self.refusal(headers)
            if refusal is not None:
                if not has_no_length(scope):
                    await read(receive, keep=0, most=DRAINED * self.max_bytes, seconds=REFUSED_TIME_LIMIT)
                if refusal.status in (401, 411):
                    refusal.headers["connection"] = "close"
                raise refusal
            self.in_flight.add(id(scope))
            scope.setdefault("state", {})[LET_IN] = True
            body = await self.body(headers, receive)
            await self.app(scope, replay(body, receive), send_and_leave)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send_and_leave)
        except asyncio.CancelledError:
            pass  # by uvicorn at the end, which closes what is left
        finally:
            self.in_flight.discard(id(scope))

    def refusal(self, headers: Headers) -> Refusal | None:
        """Why a request is refused by its headers: no key or another one, or no place; None where it may pass."""
        if self.api_key is not None:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                message = "this server needs a key. Send the header 'Authorization: Bearer KEY', with its "
                return Refusal(401, f"{message}OPD_TRL_API_KEY.", www_authenticate="Bearer")
            if not hmac.compare_digest(key.strip().encode(), self.api_key.encode()):
                message = "the key is not that of this server. Use the OPD_TRL_API_KEY that it was started with."
                return Refusal(401, message, www_authenticate="Bearer")
        if len(self.in_flight) >= self.max_concurrent:
            return Refusal(
                503,
                f"{len(self.in_flight)} requests are in flight, the most that this server takes at a time. Try again "
                "shortly, or start it with a larger --max-concurrent-requests.",
                retry_after="1",
            )
        if "transfer-encoding" in headers:
            return Refusal(411, "the request does not say how long it is. Send Content-Length, not chunks.")
        return None

    async def body(self, headers: Headers, receive: Receive) -> bytes:
        """Return the whole body; raises Refusal 413 where it is too large, and those of `read`."""
        declared = int(headers.get("content-length", "0"))
        keep = self.max_bytes if declared <= self.max_bytes else 0
        size, body = await read(receive, keep=keep, most=DRAINED * self.max_bytes, seconds=BODY_TIME_LIMIT)
        if max(size, declared) > self.max_bytes:
            raise Refusal(
                413,
                f"a request has at most {self.max_bytes} bytes here, this one has {declared or 'more'}. Send fewer "
                "sequences at a time, or start the server with a larger --max-request-mib.",
            )
        return body


async def read(receive: Receive, *, keep: int, most: int, seconds: float) -> tuple[int, bytes]:
    """Read a body to its end or to `most` bytes; return its size and, where that is at most `keep`, the body.

    Raises Refusal 408 where it does not arrive in `seconds`, 499 (which nobody reads) where the client went away.
    """
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(seconds):
            while more and size <= most:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(499, "the client went away.")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > keep:
                    parts.clear()
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refusal(408, f"the request did not arrive within {seconds} seconds.") from None
    return size, b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` as one message, and then what follows it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
