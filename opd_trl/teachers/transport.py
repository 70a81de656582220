"""Requests to a teacher server: bounded in number and time, tried again with back-off, then a stop that says which."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter


logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Statuses of a server that is starting, full or broken for the moment.
PASSING = (408, 425, 429, 500, 502, 503, 504)
#: Ends of a connection after which another server may answer.
LOST = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
#: What is in a refusal -> what to do about it.
HINTS = {
    "HTTP 401": "Set OPD_TRL_API_KEY to the server's key.",
    "HTTP 403": "Set OPD_TRL_API_KEY to the server's key.",
    "HTTP 404": "teacher_server_url is the root of the server, e.g. http://127.0.0.1:8000.",
    "greater than max allowed": "Start vLLM with a larger --max-logprobs (20 by default), or lower loss_top_k.",
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
        super().__init__(message)
        self.status = status


class BadAnswerError(ValueError):
    """An answer that is not what was asked for; the request is tried again."""


class Transport:
    """One server's HTTP: `call` tries a request until its answer passes a check.

    Args:
        url: root of the server; a trailing `/v1` is dropped.
        api_key: sent as `Authorization: Bearer`.
        timeout: seconds that a server may be silent during one request.
        retries: attempts after the first.
        backoff: seconds before the second attempt; doubles every time up to `LONGEST_PAUSE`.
        concurrency: requests in flight.
        on_return: called when an answer comes after a connection was lost, for the server may be another one.
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
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self.concurrency, self.on_return = concurrency, on_return
        self._stopped = threading.Event()
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the environment is not meant for a server of one's own
        self._session.mount(self.url, HTTPAdapter(pool_maxsize=concurrency))
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"

    def call(
        self, path: str, check: Callable[[requests.Response], T], *, what: str, body: Any = None, verify: bool = True
    ) -> T:
        """Send one request (POST where there is a `body`) and return what `check` makes of its answer.

        Args:
            path: below the root.
            check: turns the answer into a value; raises `BadAnswerError` where it cannot be right.
            what: names the request in errors, e.g. "rows 4-7 of this batch".
            body: sent as JSON.
            verify: call `on_return` after a lost connection.

        Raises:
            TeacherServerError: refused (status 4xx), or the last attempt failed too.
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
                value = check(self._send(path, body, what))
            except LOST as error:
                lost, fault = True, f"{type(error).__name__}: {innermost(error)}."
            except (requests.RequestException, BadAnswerError) as error:
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

    def _send(self, path: str, body: Any, what: str) -> requests.Response:
        """One attempt; a status that time can cure is a `BadAnswerError`, any other one ends the run."""
        method = "GET" if body is None else "POST"
        response = self._session.request(
            method, self.url + path, json=body, timeout=self.timeout, allow_redirects=False
        )
        if response.status_code == 200:
            return response
        fault = f"HTTP {response.status_code}: {error_message(response)}"
        if response.status_code in PASSING:
            raise BadAnswerError(fault)
        hint = next((hint for sign, hint in HINTS.items() if sign in fault), "")
        message = f"teacher server {self.url}{path} refuses {what}. {fault} {hint}".rstrip()
        raise TeacherServerError(message, status=response.status_code)

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


def error_message(response: requests.Response) -> str:
    """The text of an error: OpenAI's and FastAPI's shapes, else the start of the body."""
    try:
        body = response.json()
        error = body.get("error", body.get("detail", body.get("message", body)))
        return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
    except (ValueError, AttributeError):
        return response.text[:200] or "(no text)"


def innermost(error: BaseException) -> BaseException:
    """The cause at the bottom of a chain of exceptions, which says what happened to the connection."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    while reason is not None or error.__cause__ is not None:
        error, reason = reason or error.__cause__, None
    return error
