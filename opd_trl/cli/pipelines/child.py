"""One stage as a process: a session of its own, its text on the terminal and in a log, ended as a whole."""

import codecs
import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from . import guardian


class Ended(BaseException):
    """The pipeline was told to end, by Ctrl-C or by a signal."""

    def __init__(self, number: int):
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def signals_end_the_pipeline() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `Ended`, so that the stage ends and the record says so."""

    def end(number: int, _frame: object) -> None:
        raise Ended(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_child(argv: list[str], log: Path, lock: int) -> int:
    """Run a command to its end and return its exit status, 128 + N where signal N ended it.

    Args:
        argv: the command.
        log: file to which its stdout and stderr are added.
        lock: file descriptor of the pipeline's lock. The guardian holds it too: no other pipeline starts before
            everything that this one started has ended.

    Raises:
        Ended: the pipeline was told to end; the command and all its processes have ended.
    """
    its_end, our_end = os.pipe()  # what the guardian reads ends when we do
    try:
        process = subprocess.Popen(
            [sys.executable, guardian.__file__, str(its_end), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            pass_fds=(its_end, lock),
            start_new_session=True,
        )
    finally:
        os.close(its_end)
    with log.open("ab", buffering=0) as file:
        copies = [
            threading.Thread(target=copy, args=(source, screen, file), daemon=True)
            for source, screen in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for thread in copies:
            thread.start()
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except Ended:
            end_group(process.pid)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what the command has left behind
            process.wait()
            os.close(our_end)
            for thread in copies:
                thread.join(timeout=5)
    return process.returncode


def end_group(leader: int) -> None:
    """Ask a process group to end, and end it after the time of grace or at the next signal."""
    with contextlib.suppress(ProcessLookupError, Ended):
        os.killpg(leader, signal.SIGTERM)
        waiter = threading.Thread(target=os.waitid, args=(os.P_PID, leader, os.WEXITED | os.WNOWAIT), daemon=True)
        waiter.start()
        waiter.join(timeout=guardian.GRACE)


def copy(source: BinaryIO, screen: TextIO, log: BinaryIO) -> None:
    """Write what a process says to the screen as it comes, and to its log line by line: two streams share it."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")(errors="replace"), b""
    while block := os.read(source.fileno(), 65536):
        whole, rest = whole_lines(rest + block)
        keep(whole, log)
        with contextlib.suppress(OSError, ValueError):  # a closed terminal ends no stage
            # A progress bar's returns pass a `Screen` at the start of a write.
            screen.writelines(re.split(r"(?=\r)", decoder.decode(block)))
            screen.flush()
    keep(rest, log)


def keep(text: bytes, log: BinaryIO) -> None:
    """Add to a log; a full disk is said, and the command goes on: unread output would hold it for ever."""
    try:
        log.write(text)
    except OSError as error:
        print(f"opd-trl pipeline: not logged: {error}: {log.name}", file=sys.stderr)


def whole_lines(text: bytes) -> tuple[bytes, bytes]:
    """Split text behind its last line; a progress bar's return ends a line too.

    >>> whole_lines(b"one\\n50%\\r60"), whole_lines(b"one")
    ((b'one\\n50%\\r', b'60'), (b'', b'one'))
    """
    end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
    return text[:end], text[end:]


LOCK = "pipeline.lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a pipeline's folder; yield its file descriptor.

    The lock of a process that has died is free, and taken over: where that process was killed, its stage is ended
    first by its guardian, which holds the lock until then.

    Raises:
        ValueError: another process runs this pipeline.
    """
    path = folder / LOCK
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + guardian.GRACE + 10
        while not take(file):
            holder = path.read_text().strip()
            if alive(holder) or time.monotonic() > deadline:
                raise ValueError(
                    f"{folder} is in use: process {holder or 'unknown'} runs this pipeline. Wait for it, end it, or "
                    "take another folder with --set output_dir=PATH."
                )
            time.sleep(0.05)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield file
        os.ftruncate(file, 0)
    finally:
        os.close(file)


def take(file: int) -> bool:
    """Take the lock if it is free; return whether it is ours."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def alive(holder: str) -> bool:
    """Does the process that wrote the lock still run? On another machine: assumed so."""
    number, _, host = holder.partition(" on ")
    if not number.isdecimal():
        return False  # between taking the lock and writing into it, or between clearing and freeing it
    if host != socket.gethostname():
        return True
    try:
        with contextlib.suppress(PermissionError):
            os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    return True
