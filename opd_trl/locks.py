"""One process at a time writes to a place: locks that name their holder. Standard library alone.

The kernel frees a lock when the last process that has its descriptor open is gone, so the lock of a dead process is
free, unless what it has started still runs.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path


try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

logger = logging.getLogger(__name__)

#: The lock file in a folder. The hub's `push_to_hub` leaves out what starts with "_".
IN_FOLDER = "_in_use.lock"
# The locks that this process or the one that has started it holds, so that neither refuses itself.
HELD = "OPD_TRL_HELD_LOCKS"
# Seconds to wait where the holder is dead and what it has started has not ended yet.
WAIT = 60


class LockError(ValueError):
    """A place cannot be written to: another process does, or nobody can."""


@contextlib.contextmanager
def writing(output: Path | str, *, option: str = "--output", folder: bool = True) -> Iterator[int | None]:
    """Be the only process that writes into a folder, or to a file; yield the lock's descriptor.

    None where this process or the one that has started it has the lock already. The lock file, `_in_use.lock` in a
    folder and `.NAME.lock` beside a file, is gone afterwards, as is a folder that nothing was written to.

    Args:
        output: the folder or the file; it and the folders on the way are made.
        option: by which the user has named it.
        folder: is it a folder?

    Raises:
        LockError: another process writes there, or it cannot be written to.

    Example:
        >>> import tempfile
        >>> home = Path(tempfile.mkdtemp())
        >>> with writing(home / "rows.jsonl", folder=False), writing(home / "run"):
        ...     sorted(str(path.relative_to(home)) for path in home.rglob("*"))
        ['.rows.jsonl.lock', 'run', 'run/_in_use.lock']
        >>> list(home.iterdir())
        []
    """
    output = Path(output)
    path = output / IN_FOLDER if folder else output.with_name(f".{output.name}.lock")
    made = [parent for parent in path.parents if not parent.exists()]
    remedy = f"writes there. Wait for it, end it, or give another {option}."
    try:
        with contextlib.ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(locked(path, f"{option} {output}", remedy))
            except OSError as error:
                raise LockError(f"{option} {output} cannot be written: {error}. Give a place that can.") from None
            if lock is not None:
                stack.callback(path.unlink, missing_ok=True)
            yield lock
    finally:
        for parent in made:
            with contextlib.suppress(OSError):  # something was written into it
                parent.rmdir()


@contextlib.contextmanager
def locked(path: Path, place: str, remedy: str) -> Iterator[int | None]:
    """Hold a lock file, which says who holds it; yield its descriptor, or None where it is held already.

    Args:
        path: the file, made where it is missing and empty afterwards.
        place: what is locked, in words: the message begins with it.
        remedy: how the message goes on behind the holder's number.

    Raises:
        LockError: another process holds it. One that is dead is waited for: what it has started is about to end.
    """
    file = take(path, place, remedy)
    name = name_of(file)
    if name in held():
        os.close(file)
        yield None
        return
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        os.environ[HELD] = " ".join([*held(), name])
        try:
            yield file
        finally:
            os.environ[HELD] = " ".join(other for other in held() if other != name)
            os.ftruncate(file, 0)
    finally:
        os.close(file)


def take(path: Path, place: str, remedy: str) -> int:
    """Open a lock file and lock it, unless it is held by us; return its descriptor."""
    deadline = time.monotonic() + WAIT
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if name_of(file) in held() or (is_free(file, place) and is_file(path, file)):
                return file
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            if is_alive(holder) or time.monotonic() > deadline:
                raise LockError(f"{place} is in use: process {holder or 'unknown'} {remedy}")
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        time.sleep(0.05)


def is_free(file: int, place: str) -> bool:
    """Take the lock if it is free; return whether it is ours. A file system without locks is said, and passed."""
    try:
        if fcntl is None:
            raise OSError("this system has none")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("%s cannot be locked (%s): nothing keeps a second run out. Start only one.", place, error)
    return True


def is_file(path: Path, file: int) -> bool:
    """Is this still the file of that name? The holder removes it as it ends."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def held() -> list[str]:
    """The names of the locks that are held."""
    return os.environ.get(HELD, "").split()


def name_of(file: int) -> str:
    """A file by its numbers, the same by whatever path it was opened."""
    state = os.fstat(file)
    return f"{state.st_dev}:{state.st_ino}"


def is_alive(holder: str) -> bool:
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
