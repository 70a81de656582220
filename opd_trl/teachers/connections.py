"""Connections to a teacher server: TLS, and answers that are bounded in bytes and in time."""

import http.client
import io
import json
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from ..addresses import Address
from ..screen import one_line


#: Variables that name the CA certificates to trust in place of the system's, the first that is set.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
#: Bytes read at a time.
PIECE = 1 << 20
#: Bytes read of an answer that is a refusal.
REFUSAL = 1 << 16
#: Bytes of an answer whose size does not depend on what is asked: names, tokens of one text.
SMALL = 1 << 20


class BadAnswerError(ValueError):
    """An answer that is not what was asked for; the request is tried again."""

    def __init__(self, message: str):
        super().__init__(one_line(message, 500))


class TimedReader(io.RawIOBase):
    """The bytes of a socket up to a point in time, however they trickle in; TimeoutError then."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket):
        self._raw, self._sock = raw, sock
        self._deadline = time.monotonic() + sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class TimedResponse(http.client.HTTPResponse):
    """An answer that must be whole, from its first line to its last byte, within the timeout of its socket."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any):
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(TimedReader(self.fp.detach(), sock))


class Timed:
    """A connection whose answers are `TimedResponse`."""

    response_class = TimedResponse

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(self.timeout)  # the last answer has left less
        super().request(*args, **kwargs)


class Plain(Timed, HTTPConnection):
    """A timed connection of http."""


class Encrypted(Timed, HTTPSConnection):
    """A timed connection of https."""


def connection_pool(address: Address, *, timeout: float, most: int) -> urllib3.HTTPConnectionPool:
    """Connections to a server, at most `most` of them kept; no proxy, redirect, cookie or `.netrc`.

    Args:
        timeout: seconds to connect, to send a request, and to receive its whole answer; each.
    """
    options = {"timeout": urllib3.Timeout(connect=timeout, read=timeout), "maxsize": most, "retries": False}
    if address.scheme == "http":
        pool = urllib3.HTTPConnectionPool(address.host, address.port, **options)
        pool.ConnectionCls = Plain
    else:
        pool = urllib3.HTTPSConnectionPool(address.host, address.port, ssl_context=trust(), **options)
        pool.ConnectionCls = Encrypted
    return pool


def trust() -> ssl.SSLContext:
    """Trust the certificates that a variable of `CA_VARIABLES` names, else the system's; ValueError: none there."""
    name = next((name for name in CA_VARIABLES if os.environ.get(name)), None)
    if name is None:
        return ssl.create_default_context()
    path = os.environ[name]
    try:
        return ssl.create_default_context(**{"capath" if Path(path).is_dir() else "cafile": path})
    except OSError as error:  # of ssl too
        raise ValueError(
            f"{name}={path!r} holds no certificates that can be read ({error}). Give a PEM file or folder of the CA."
        ) from None


def headers(address: Address, key: str | None) -> dict[str, str]:
    """What every request carries: the user and password of the address, where it has them, else the key."""
    sent = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if address.user is not None:
        sent["Authorization"] = f"Basic {address.user}"
    elif key is not None:
        sent["Authorization"] = f"Bearer {key}"
    return sent


def read(response: urllib3.BaseHTTPResponse, most: int) -> bytes:
    """The bytes of an answer; raises BadAnswerError where it is compressed or larger than `most`."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise BadAnswerError(f"the answer is compressed ({encoding}), which was not asked for.")
    pieces, size = [], response.length_remaining or 0
    if size <= most:
        size = 0
        while size <= most and (piece := response.read(PIECE, decode_content=False)):
            pieces.append(piece)
            size += len(piece)
    if size > most:
        raise BadAnswerError(f"the answer is larger than the {most} bytes that what was asked for can take.")
    return b"".join(pieces)


def read_refusal(response: urllib3.BaseHTTPResponse) -> str:
    """What a server says with an error status: OpenAI's and FastAPI's shapes, else the start of its text."""
    content = response.read(REFUSAL, decode_content=False)
    try:
        body = json.loads(content)
        error = body.get("error", body.get("detail", body.get("message", body)))
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        text = content[:1000].decode(errors="replace")
    return one_line(text, 500) or "(no text)"
