"""How a process of a job ends: as an interpreter does, but for its last part, which torch may not survive."""

import os
import subprocess
import sys


AT_THE_END = """
import atexit, sys, threading, time
from types import SimpleNamespace
from opd_trl.scripts import common

class Torn:
    def __del__(self):
        print("torn down", flush=True)

torn = Torn()
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
parser = SimpleNamespace(parse_args_and_config=lambda: ())
common.run(parser, lambda: None, lambda: sys.stdout.write("main, "))
"""


def test_a_process_of_several_leaves_before_the_interpreter_is_torn_down():
    ended = subprocess.run([sys.executable, "-c", AT_THE_END], env=environment("2"), capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "main, thread\nexit function\n"), ended.stderr


def test_a_process_that_is_alone_ends_as_ever():
    ended = subprocess.run([sys.executable, "-c", AT_THE_END], env=environment("1"), capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "main, thread\nexit function\ntorn down\n"), ended.stderr


def environment(processes: str) -> dict[str, str]:
    return os.environ | {"WORLD_SIZE": processes}
