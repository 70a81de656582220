"""Runs a command and ends its whole process group when the pipeline that started it is gone, however it went.

Started as a file (`python guardian.py FD COMMAND ...`) at the head of a session of its own: FD is a pipe whose other
end only the pipeline holds. The standard library alone, so that it costs 20 ms.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time


# Seconds between asking processes to end and ending them.
GRACE = float(os.environ.get("OPD_TRL_PIPELINE_GRACE", "20"))


def main() -> int:
    """Run the command; return its exit status, 128 + N where signal N ended it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # meant for the command; a handler, unlike SIG_IGN, is not inherited
    command = subprocess.Popen(sys.argv[2:])
    threading.Thread(target=watch, args=(int(sys.argv[1]),), daemon=True).start()
    status = command.wait()
    return status if status >= 0 else 128 - status


def watch(pipe: int) -> None:
    """Wait for the pipeline's end of the pipe to close, then end the group."""
    with contextlib.suppress(OSError):
        os.read(pipe, 1)
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
