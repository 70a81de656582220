"""One stage as a process: a session of its own, its text on the terminal and in a log, ended as a whole."""

import codecs
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, TextIO

from ...scripts.processes import Ended, owned


def run_child(argv: list[str], log: Path, lock: int | None, variables: Mapping[str, str]) -> int:
    """Run a command to its end and return its exit status, 128 + N where signal N ended it.

    Args:
        argv: the command.
        log: file to which its stdout and stderr are added.
        lock: file descriptor of the pipeline's lock: no other pipeline starts before everything that this one
            started has ended.
        variables: of its environment, beside those of this process.

    Raises:
        Ended: the pipeline was told to end; the command and all its processes have ended.
    """
    with log.open("ab", buffering=0) as file, owned(hold=[lock]) as owner:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **variables, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        copies = [
            threading.Thread(target=copy, args=(source, screen, file), daemon=True)
            for source, screen in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for thread in copies:
            thread.start()
        try:
            status = process.wait()
        except Ended:
            owner.end(signal.SIGTERM)
            raise
        finally:
            owner.kill()  # what the command has left behind
            process.wait()
            for thread in copies:
                thread.join(timeout=5)
    return status if status >= 0 else 128 - status


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
