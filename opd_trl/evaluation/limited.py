"""Calls with a time limit, in processes of their own: no argument can hang or crash the run."""

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple


TIMEOUT, CRASH = "timeout", "crash"
# The clock on the wall is a second line of defence, behind the CPU time that a process counts itself: for one that
# neither works nor answers. Far off, since a busy machine is not a reason for a verdict.
WALL_FACTOR, WALL_SECONDS = 20, 60
START_SECONDS = 300


class Outcome(NamedTuple):
    """The result of a call, or why there is none.

    Args:
        result: what the function returned; None where there is a failure.
        failure: "timeout", "crash", or None.
    """

    result: Any
    failure: str | None


class LimitedCalls(contextlib.AbstractContextManager):
    """Processes that call one function; one that overruns its limit is ended and replaced.

    Call it with the keyword arguments of many calls; the processes start with the first. A context manager: `close`
    ends them.

    Args:
        file: a module that imports nothing of its own package at its top.
        name: its function. Arguments and result are what JSON holds.
        warm_up: arguments of a first call, that makes the function import what it needs.
        workers: processes.
        time_limit: seconds of CPU time for one call.

    Example:
        >>> import textwrap
        >>> hello = {"text": "hello", "width": 9}
        >>> with LimitedCalls(textwrap.__file__, "shorten", hello, workers=1, time_limit=1) as calls:
        ...     calls([{"text": "a   b", "width": 9}])
        [Outcome(result='a b', failure=None)]
    """

    def __init__(self, file: str, name: str, warm_up: dict[str, Any], *, workers: int, time_limit: float) -> None:
        if workers < 1 or time_limit <= 0:
            raise ValueError(f"workers must be >= 1 and time_limit > 0 seconds, got {workers} and {time_limit}.")
        self.time_limit = time_limit
        self._workers: queue.Queue[Worker] = queue.Queue()
        for _ in range(workers):
            self._workers.put(Worker(file, name, warm_up))
        self._threads = ThreadPoolExecutor(workers)

    def __call__(self, calls: Iterable[dict[str, Any]]) -> list[Outcome]:
        """Call the function with each set of arguments; return the outcomes in order."""
        return list(self._threads.map(self._call, calls))

    def _call(self, arguments: dict[str, Any]) -> Outcome:
        worker = self._workers.get()
        try:
            return worker.ask(arguments, self.time_limit)
        finally:
            self._workers.put(worker)

    def close(self) -> None:
        """End the processes and the threads that wait for them."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._workers.empty():
            self._workers.get().stop()

    def __exit__(self, *error: object) -> None:
        self.close()


class Worker:
    """One process, started when it is asked and after it has died."""

    def __init__(self, file: str, name: str, warm_up: dict[str, Any]) -> None:
        # -P: modules of this folder, `math` and `statistics` among them, must not hide those of Python.
        self.command = [sys.executable, "-P", str(Path(__file__).with_name("limited_worker.py")), file, name]
        self.warm_up = warm_up
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, arguments: dict[str, Any], seconds: float) -> Outcome:
        """The outcome of a call. A process that dies of it, or does not answer, is a failure of the call."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        line = self.exchange({"arguments": arguments, "seconds": seconds}, WALL_SECONDS + WALL_FACTOR * seconds)
        if line:
            answer = json.loads(line)
            return Outcome(answer.get("result"), answer.get("failure"))
        slow = self.process.poll() is None or self.process.returncode == -signal.SIGPROF
        self.stop()
        return Outcome(None, TIMEOUT if slow else CRASH)

    def start(self) -> None:
        """Start the process and wait until it has imported what it needs; raises RuntimeError where it does not."""
        self.stop()
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if not self.exchange({"arguments": self.warm_up, "seconds": None}, START_SECONDS):
            status = self.process.poll()
            self.stop()
            raise RuntimeError(
                f"a process of {' '.join(self.command)} did not start (exit status {status}). Try it by itself, with "
                f"the line {json.dumps({'arguments': self.warm_up, 'seconds': None})} as its input."
            )

    def exchange(self, task: dict[str, Any], seconds: float) -> bytes:
        """Send a task and return the answer, or nothing where the process ends or `seconds` pass first."""
        output = self.process.stdout.fileno()
        try:
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.process.wait()
            return b""
        received, deadline = b"", time.monotonic() + seconds
        while not received.endswith(b"\n"):
            if not select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return b""
            part = os.read(output, 2**16)
            if not part:
                self.process.wait()
                return b""
            received += part
        return received

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            for stream in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(BrokenPipeError):  # a line that the process never read
                    stream.close()
            self.process.wait()
            self.process = None
