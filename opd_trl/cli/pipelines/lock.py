"""One run of a pipeline at a time: a lock that the system frees when its holder is gone."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from . import leash


LOCK = "pipeline.lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a pipeline's folder; yield its file descriptor.

    The lock of a process that has died is free, and taken over: where that process was killed, its stage is ended
    first by its leash, which holds the lock until then.

    Raises:
        ValueError: another process runs this pipeline.
    """
    path = folder / LOCK
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + leash.GRACE + 10
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
    """Take the lock if it is free."""
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
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
