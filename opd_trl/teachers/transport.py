"""Requests to a teacher server: bounded in number and time, tried again with back-off, then a stop that says which."""

import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any, TypeVar

from urllib3.exceptions import HTTPError

from ..addresses import Address
from ..credentials import usable_key
from ..screen import one_line, printable
from .connections import CA_VARIABLES, BadAnswerError, connection_pool, headers, read, read_refusal


logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Statuses of a server that is starting, full or broken for the moment.
PASSING = (408, 425, 429, 500, 502, 503, 504)
#: Ends of a connection after which another server may answer.
LOST = (HTTPError, HTTPException, OSError)
#: Reasons of OpenSSL for what is not TLS at all.
NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")
#: How vLLM is started so that it sends the hidden states of every token.
POOLING_FLAGS = "--runner pooling --convert embed --pooler-config.task token_embed"
#: What is in a refusal -> what to do about it.
HINTS = {
    "HTTP 401": "Set OPD_TRL_API_KEY to the server's key.",
    "HTTP 403": "Set OPD_TRL_API_KEY to the server's key.",
    "HTTP 404": "teacher_server_url is the root of the server, e.g. http://127.0.0.1:8000.",
    "greater than max allowed": "Start vLLM with a larger --max-logprobs (20 by default), or lower loss_top_k.",
    "not configured to return": "Start SGLang with --enable-return-hidden-states --chunked-prefill-size -1.",
    "pooling_task": f"Start it with {POOLING_FLAGS}.",
    "Unsupported task": f"Start it with {POOLING_FLAGS}.",
    "not JSON compliant": "vLLM says so of NaN: restart it with --dtype bfloat16 or float32.",
}
#: Longest pause between two attempts, seconds.
LONGEST_PAUSE = 30.0


class TeacherServerError(RuntimeError):
    """A teacher server cannot be used: not reached, refuses a request, or answers with what cannot be right.

    Args:
        message: the error.
        status: HTTP status of a refusal.
    """

    def __init__(self, message: str, *, status: int | None = None):
        super().__init__(printable(message))
        self.status = status


class Transport:
    """One server's HTTP: `call` tries a request until its answer passes a check.

    Args:
        url: root of the server; a trailing `/v1` is dropped. Its user and password, where it has them, are sent in
            place of the key.
        api_key: sent as `Authorization: Bearer`.
        timeout: seconds for one request: to connect, to send it, and until its answer is whole; each.
        retries: attempts after the first.
        backoff: seconds before the second attempt; doubles every time up to `LONGEST_PAUSE`.
        concurrency: requests in flight.
        on_return: called when an answer comes after a connection was lost, for the server may be another one.

    Attributes:
        url: the address, without user and password.

    Raises:
        ValueError: a malformed address, a key that no header can carry, or CA certificates that cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 300.0,
        retries: int = 8,
        backoff: float = 1.0,
        concurrency: int = 8,
        on_return: Callable[[], None] = lambda: None,
    ):
        address = Address.parse(url)
        self.url, self._path = str(address), address.path
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self.concurrency, self.on_return = concurrency, on_return
        self._stopped = threading.Event()
        self._pool = connection_pool(address, timeout=timeout, most=concurrency)
        self._headers = headers(address, usable_key(api_key))

    def call(
        self,
        path: str,
        check: Callable[..., T],
        *,
        what: str,
        most: int,
        body: Any = None,
        verify: bool = True,
        header: str | None = None,
    ) -> T:
        """Send one request (POST where there is a `body`) and return what `check` makes of its answer.

        Args:
            path: below the root.
            check: turns the answer into a value; whatever it raises means that the answer cannot be right.
            what: names the request in errors, e.g. "rows 4-7 of this batch".
            most: bytes that the answer can have.
            body: sent as JSON.
            verify: call `on_return` after a lost connection.
            header: of the answer, that `check` takes too; the empty text where it has none.

        Raises:
            TeacherServerError: refused (status 4xx), a certificate that is not trusted, or the last attempt failed.
        """
        start, lost, fault = time.monotonic(), False, ""
        for attempt in range(self.retries + 1):
            if attempt:
                pause = min(self.backoff * 2 ** (attempt - 1), LONGEST_PAUSE)
                logger.warning(
                    f"teacher server {self.url}{path}, {what}: {fault} Attempt {attempt + 1} of {self.retries + 1} in "
                    f"{pause:g} s."
                )
                if self._stopped.wait(pause):
                    raise TeacherServerError(f"{what}: given up, since another request failed.")
            try:
                value = checked(check, *self._send(path, body, what, most, header))
            except LOST as error:
                self._check_trust(error)
                lost, fault = True, one_line(f"{type(error).__name__}: {innermost(error)}.", 500)
            except BadAnswerError as error:
                fault = f"{error}"
            else:
                if lost and verify:
                    self.on_return()
                return value
        raise TeacherServerError(
            f"teacher server {self.url}{path} failed for {what}, {self.retries + 1} attempts in "
            f"{time.monotonic() - start:.0f} s. Last: {fault} Look at the server's log; teacher_server_retries and "
            "teacher_server_timeout wait longer. A run that was under way goes on from its last checkpoint."
        )

    def _send(self, path: str, body: Any, what: str, most: int, header: str | None) -> tuple[bytes | str, ...]:
        """One attempt: the answer, and its header where one is wanted.

        A status that time can cure is a `BadAnswerError`, any other one ends the run.
        """
        response = self._pool.urlopen(
            "GET" if body is None else "POST",
            self._path + path,
            body=None if body is None else json.dumps(body).encode(),
            headers=self._headers,
            redirect=False,
            preload_content=False,
        )
        try:
            if response.status == 200:
                content = read(response, most)
                return (content,) if header is None else (content, response.headers.get(header, ""))
            fault = f"HTTP {response.status}: {read_refusal(response)}"
        finally:
            response.close()
        if response.status in PASSING:
            raise BadAnswerError(fault)
        hint = next((hint for sign, hint in HINTS.items() if sign in fault), "")
        message = f"teacher server {self.url}{path} refuses {what}. {fault} {hint}".rstrip()
        raise TeacherServerError(message, status=response.status)

    def _check_trust(self, error: BaseException) -> None:
        """Raise TeacherServerError for an end of a connection that no second attempt can cure."""
        cause = innermost(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise TeacherServerError(
                f"teacher server {self.url}: its certificate is not trusted ({cause.verify_message}). Name the file "
                f"of the CA that signed it in {CA_VARIABLES[1]}, or correct the host in the address."
            ) from error
        if isinstance(cause, ssl.SSLError) and cause.reason in NO_TLS:
            raise TeacherServerError(
                f"teacher server {self.url} does not answer in TLS ({cause.reason}). Write http:// where it has none."
            ) from error

    def map(self, send: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """`send` for each item, at most `concurrency` at a time, in order; the first failure ends the others."""
        self._stopped.clear()
        with ThreadPoolExecutor(self.concurrency) as executor:
            futures = [executor.submit(send, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._stopped.set()
                executor.shutdown(wait=False, cancel_futures=True)
                raise


def checked(check: Callable[..., T], *answer: bytes | str) -> T:
    """What `check` makes of an answer; whatever it raises is a `BadAnswerError`, for the answer is another's."""
    try:
        return check(*answer)
    except BadAnswerError:
        raise
    except Exception as error:
        raise BadAnswerError(f"the answer cannot be read ({type(error).__name__}: {error}).") from error


def innermost(error: BaseException) -> BaseException:
    """The cause at the bottom of a chain of exceptions, which says what happened to the connection."""
    held = (argument for argument in reversed(error.args) if isinstance(argument, BaseException))
    inner = error.__cause__ or next(held, None)
    return error if inner is None else innermost(inner)
