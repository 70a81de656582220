"""What a client may use up before it has shown a key: connections, time, and lines of the log."""

import asyncio
import logging
import os
import resource
import time

from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol


HEAD_LIMIT = 10  # seconds for the first line and the headers of a request, the first one or the next
WRITE_LIMIT = 30  # seconds in which a client must have read what it was sent last, at most a piece of an answer
HEAD_SLICE = 1 << 10  # bytes of a head read at a time: tiny chunks behind it would hold the event loop for a second
BACKLOG = 128  # connections that wait to be accepted
LINES = 60  # of the log in a minute
LET_IN = "let_in"  # in the state of a request that has passed the gate


class Connection(H11Protocol):
    """uvicorn's connection, ended where its client is slow to ask or slow to read.

    Where `most` are open, a further one takes the place of that which has been longest without a request that the gate
    let in; it is closed where there is none.
    """

    def __init__(self, *args, most: int, **options):
        super().__init__(*args, **options)
        self.most = most
        self.idle_since = time.monotonic()
        self.timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Make room for it, and wait for its first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that pause_writing says whenever something is unread
        others = [x for x in self.connections if x is not self and not x.transport.is_closing()]
        if len(others) >= self.most:
            idle = (x for x in others if not x.is_let_in())
            min(idle, key=lambda x: x.idle_since, default=self).transport.abort()
        self.limit("head", HEAD_LIMIT)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks of a connection that has ended."""
        for name in list(self.timers):
            self.unlimit(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read; the head of a request has `HEAD_LIMIT` seconds from its first byte on."""
        while data and not self.transport.is_closing():
            size = len(data) if self.is_busy() else HEAD_SLICE
            super().data_received(data[:size])
            data = data[size:]
            if self.is_busy() and has_no_length(self.scope):
                self.flow.pause_reading()  # it is refused, and its chunks are not looked at
                break
        if self.is_busy():
            self.unlimit("head")
        elif "head" not in self.timers:
            self.limit("head", HEAD_LIMIT)

    def on_response_complete(self) -> None:
        """Wait for the next request, or close where the rest of this one is not wanted any more."""
        self.idle_since = time.monotonic()
        if self.cycle.more_body:
            self.transport.close()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client has not read what it was sent."""
        self.limit("write", WRITE_LIMIT)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has read what it was sent."""
        self.unlimit("write")
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection at once, with what its client has not read."""
        self.transport.abort()

    def is_busy(self) -> bool:
        """Is a request being read or answered?"""
        return self.cycle is not None and not self.cycle.response_complete

    def is_let_in(self) -> bool:
        """Is it one that the gate let in?"""
        return self.is_busy() and self.scope["state"].get(LET_IN, False)

    def limit(self, name: str, seconds: float) -> None:
        """End the connection after so many seconds."""
        self.unlimit(name)
        self.timers[name] = self.loop.call_later(seconds, self.transport.abort)

    def unlimit(self, name: str) -> None:
        """Stop the clock of a limit."""
        if name in self.timers:
            self.timers.pop(name).cancel()


def has_no_length(scope: Scope) -> bool:
    """Does a request have a body that does not say its length?"""
    return any(name == b"transfer-encoding" for name, _ in scope["headers"])


def most_connections(wanted: int) -> int:
    """`wanted`, or fewer where the process may not open so many files."""
    open_files = len(os.listdir("/dev/fd"))
    return max(1, min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - open_files - backlog() - 8))


def backlog() -> int:
    """Connections that are accepted in one go, which the files that may be open must have room for."""
    return max(1, min(BACKLOG, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


class FewLines(logging.Filter):
    """Lets `LINES` records of a minute through, and then says how many it has held back."""

    def __init__(self):
        super().__init__()
        self.minute, self.count = 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Is this one of the first of its minute?"""
        minute = int(record.created // 60)
        if minute != self.minute:
            held_back, self.minute, self.count = max(0, self.count - LINES), minute, 0
            if held_back:
                record.msg, record.args = f"{record.getMessage()} ({held_back} lines held back before)", ()
        self.count += 1
        return self.count <= LINES


def limit_log() -> None:
    """Bound the lines that clients can cause; all loggers share the bound."""
    few = FewLines()
    for name in ("uvicorn.error", "asyncio", "opd_trl.serving.app"):
        logging.getLogger(name).addFilter(few)
