"""Processes that end with the one that has started them, however that ends: by a signal, SIGKILL or an error.

A guardian, a small process, reads a pipe whose other end only the owner holds, and ends what the owner has started
when the pipe closes. It knows these processes by a mark in their environment, which all of their children inherit,
also those that torch's launcher puts into sessions of their own. This file is the guardian's program as well.
"""

import atexit
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any


# Holds the marks of all owners, the outermost first.
MARKS = "OPD_TRL_OWNERS"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """This process was told to end, by Ctrl-C or by a signal."""

    def __init__(self, number: int):
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def end(number: int, _frame: object) -> None:
    """Raise `Ended`: the handler of a signal."""
    raise Ended(number)


@contextlib.contextmanager
def signals_end(handler: Callable[[int, object], None] = end) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `Ended`; those that are ignored stay so (`nohup`)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def all_cores() -> dict[str, str]:
    """Variables with which the only training process of a machine uses all its cores, as under plain `python`.

    `accelerate launch` would give it one. Threads that wait do not spin: with other work on the same cores a step
    would take many times as long. What the user has set stays.
    """
    ours = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), "OMP_WAIT_POLICY": "PASSIVE"}
    return {name: os.environ.get(name, value) for name, value in ours.items()}


@contextlib.contextmanager
def one_interrupt() -> Iterator[None]:
    """Within, SIGINT counts once: Ctrl-C reaches a training and its command, which passes it on."""

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


def leave() -> None:
    """End this process with status 0 as the interpreter would, its exit functions included, but for its last part.

    There, before Python 3.14, a communication thread of torch that waits for the interpreter is ended in the midst of
    C++, which now and then aborts the process ("terminate called without an active exception"): a job that has done
    all of its work would have failed.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def grace_seconds(default: float = 20) -> float:
    """Seconds between asking processes to end and killing them."""
    names = ("OPD_TRL_GRACE", "OPD_TRL_PIPELINE_GRACE")
    return float(next((os.environ[name] for name in names if name in os.environ), default))


class Owner:
    """What ends the processes that carry a mark."""

    def __init__(self, mark: str, grace: float):
        self.mark = mark
        self.grace = grace

    def end(self, number: int) -> None:
        """Ask them to end, by a signal; kill them after the grace, or at once where this process is told to end."""
        with contextlib.suppress(Ended), signals_end():
            ask(self.mark, number, self.grace)
        self.kill()

    def kill(self) -> None:
        """Kill them, until there are none, whatever this process is told meanwhile."""
        with signals_end(lambda *_: None):
            kill(self.mark)

    @contextlib.contextmanager
    def killing(self) -> Iterator[None]:
        """Kill them where the block is interrupted, before whatever waits for them does."""
        try:
            yield
        except KeyboardInterrupt:
            self.kill()
            raise


@contextlib.contextmanager
def owned(*, grace: float | None = None, hold: Sequence[int | None] = ()) -> Iterator[Owner]:
    """What is started within ends with this process, and at the end of the block.

    Args:
        grace: seconds that it has to end by itself where this process is gone.
        hold: descriptors of locks, None left out: the guardian keeps them until all have ended.
    """
    owner = Owner(secrets.token_hex(8), grace_seconds() if grace is None else grace)
    before = os.environ.get(MARKS, "")
    its_end, our_end = os.pipe()
    try:
        guardian = subprocess.Popen(
            [sys.executable, "-P", __file__, str(its_end), owner.mark, str(owner.grace)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(its_end, *(file for file in hold if file is not None)),
            start_new_session=True,  # no signal of a terminal or to our group is meant for it
        )
    finally:
        os.close(its_end)
    os.environ[MARKS] = f"{before} {owner.mark}".strip()
    try:
        yield owner
    finally:
        os.environ[MARKS] = before
        owner.kill()  # what was left behind
        with contextlib.suppress(BrokenPipeError):  # it was killed
            os.write(our_end, b"!")
        os.close(our_end)
        guardian.wait()


def guard(pipe: int, mark: str, grace: float) -> None:
    """Wait until the owner has ended; where it could not say so itself, end what it has started."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if not os.read(pipe, 1):
        ask(mark, signal.SIGTERM, grace)
        kill(mark)


def ask(mark: str, number: int, grace: float) -> None:
    """Send a signal to the processes that nobody else among them looks after; wait until all have ended, or `grace`.

    Their children are theirs to end. Those whose parent has ended without doing so are asked in turn.
    """
    asked, deadline = set(), time.monotonic() + grace
    while (found := marked(mark)) and time.monotonic() < deadline:
        pids = {process.pid for process in found}
        for process in found:
            if process.info["ppid"] not in pids and process.pid not in asked:
                asked.add(process.pid)
                send(process, number)
        time.sleep(0.05)


def kill(mark: str) -> None:
    """Kill all processes that carry the mark, until there are none."""
    while found := marked(mark):
        for process in found:
            send(process, signal.SIGKILL)
        time.sleep(0.02)


def send(process: Any, number: int) -> None:
    """Send a signal to a process, unless it has ended meanwhile."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process.pid, number)


def marked(mark: str) -> list[Any]:
    """The processes that carry a mark, and all that descend from one; those that have ended left out."""
    import psutil  # 0.1 s, which neither a help nor a guardian at rest must wait for

    found = {p.pid: p for p in psutil.process_iter(["ppid", "environ", "status"])}
    pids = {pid for pid, p in found.items() if mark in (p.info["environ"] or {}).get(MARKS, "").split()}
    while more := {pid for pid, p in found.items() if p.info["ppid"] in pids} - pids:  # one may hide its environment
        pids |= more
    return [found[pid] for pid in pids if found[pid].info["status"] != psutil.STATUS_ZOMBIE]


if __name__ == "__main__":
    guard(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
