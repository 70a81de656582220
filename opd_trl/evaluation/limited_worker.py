"""A process that calls one function for `opd_trl.evaluation.limited`: lines of JSON in, lines of JSON out.

It imports nothing of opd_trl by itself, so that it starts in a second. It ends when its input closes, or when
one call takes more CPU time than it may. CPU time, so that a busy machine changes no result.
"""

import importlib.util
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any


# Seconds of CPU time between the exception at the limit, which C code does not see, and the end of the process.
GRACE = 1.0
MEMORY = 4 * 2**30


class OutOfTime(BaseException):
    """The limit is reached. No `Exception`: libraries catch those."""


def limited(function: Callable[..., Any], arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Call within `seconds` of CPU time; the kernel ends the process where Python cannot be interrupted.

    Returns:
        `{"result": ...}`, or `{"failure": "timeout" or "crash"}`.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds + GRACE)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        return {"result": function(**arguments)}
    except OutOfTime:
        return {"failure": "timeout"}
    except (RecursionError, MemoryError):
        return {"failure": "crash"}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def on_limit(signum, frame) -> None:
    """The handler of the signal that the timer sends at the limit."""
    raise OutOfTime


def load(file: str, name: str) -> Callable[..., Any]:
    """The function of a module that is given by its file and imports nothing of its own package."""
    spec = importlib.util.spec_from_file_location("limited_module", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def main(file: str, name: str) -> None:
    """Answer every line of standard input with one line. The first call imports, and has no limit."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGVTALRM, on_limit)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    function = load(file, name)
    for line in sys.stdin.buffer:
        task = json.loads(line)
        seconds = task["seconds"]
        answer = {"result": function(**task["arguments"])} if seconds is None else limited(function, **task)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
