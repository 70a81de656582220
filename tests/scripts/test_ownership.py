"""What `launch` has started ends with it, whatever ends it: in one process, and in two that torch's agent starts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


# A process that launches for each line that it reads, in a child of its own: the imports take longer than a launch.
SERVER = """
import json, os, signal, sys
import accelerate.commands.launch, torch.distributed.run
from opd_trl.locks import writing
from opd_trl.scripts.launching import launch

for line in sys.stdin:
    order = json.loads(line)
    if order["wait"]:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        os.setsid()
        os.chdir(order["folder"])
        os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT), 2)
        if order["ignore"]:
            signal.signal(order["ignore"], signal.SIG_IGN)
        with writing("out") as lock:
            status = launch("waits", order["flags"], order["arguments"], grace=order["grace"], hold=[lock])
        os._exit(status)
"""
# In place of a training: it has a child in a session of its own, and can be deaf to SIGTERM.
WAITS = """
import os, signal, subprocess, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
rank = os.environ.get("RANK", "0")
try:
    with open(f"begun{rank}", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename(f"begun{rank}", f"rank{rank}")
    time.sleep(600)
except KeyboardInterrupt:
    print("says how to go on", file=sys.stderr)
    sys.exit(130)
"""
LIMIT = 120  # seconds; a machine may be slow


class Launched:
    """A launch that runs: its number, and those of the processes that it has started."""

    def __init__(self, ask, folder: Path, *arguments: str, ranks: int = 1, grace: float = 60, ignore: int = 0):
        self.ask, self.folder = ask, folder
        (folder / "waits.py").write_text(WAITS)
        flags = ["--cpu"]
        if ranks > 1:
            flags = ["--multi_gpu", "--num_processes", str(ranks), "--main_process_port", free_port()]
        order = {"folder": str(folder), "flags": flags, "arguments": arguments, "grace": grace, "ignore": ignore}
        self.pid = ask(wait=0, **order)
        files = [folder / f"rank{rank}" for rank in range(ranks)]
        wait_for(lambda: all(file.exists() for file in files))
        self.others = [int(pid) for file in files for pid in file.read_text().split()]

    def status(self) -> int:
        return self.ask(wait=self.pid)

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()


@pytest.fixture(scope="module")
def ask():
    """Give an order to the server and return the number that it answers."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as server:

        def ask(**order) -> int:
            server.stdin.write(json.dumps(order) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield ask
        server.stdin.close()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(what) -> None:
    end = time.monotonic() + LIMIT
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.attack(
    "processes", "SIGTERM, SIGINT or SIGHUP to the command alone", "its training ends first, in one or more processes"
)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda x: x.name)
def test_a_signal_to_the_command_ends_its_training(number, ranks, ask, tmp_path):
    launched = Launched(ask, tmp_path, ranks=ranks)
    os.kill(launched.pid, number)
    assert launched.status() == 128 + number
    assert not any(map(is_running, launched.others))
    assert not (tmp_path / "out").exists()  # the lock is gone with it
    assert launched.stderr.count("says how to go on") == (ranks if number == signal.SIGINT else 0)


@pytest.mark.attack("processes", "SIGKILL to the command (OOM killer)", "its training ends, in one or more processes")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_command_takes_its_training_along(ranks, ask, tmp_path):
    launched = Launched(ask, tmp_path, ranks=ranks)
    os.kill(launched.pid, signal.SIGKILL)
    assert launched.status() == -signal.SIGKILL
    wait_for(lambda: not any(map(is_running, launched.others)))


@pytest.mark.attack(
    "processes", "a second run while the training of a killed command still ends", "the folder is locked until it has"
)
def test_the_lock_is_held_until_the_last_process_has_ended(ask, tmp_path):
    launched = Launched(ask, tmp_path, "deaf", grace=2)
    training = launched.others[0]
    os.kill(launched.pid, signal.SIGKILL)
    launched.status()
    again = [sys.executable, "-c", "from opd_trl.locks import writing\nwith writing('out'): print('mine')"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    second = subprocess.Popen(again, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert is_running(training)
    assert second.communicate(timeout=LIMIT)[0] == "mine\n"
    assert not is_running(training)


@pytest.mark.attack("processes", "a training that is deaf to SIGTERM", "it is killed after the grace time")
def test_what_does_not_end_in_time_is_killed(ask, tmp_path):
    launched = Launched(ask, tmp_path, "deaf", ranks=2, grace=1)
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.status() == 143
    assert not any(map(is_running, launched.others))


@pytest.mark.attack("processes", "an impatient second signal", "everything is killed at once")
def test_a_second_signal_does_not_wait_for_the_grace(ask, tmp_path):
    launched = Launched(ask, tmp_path, "deaf", grace=10**6)
    for _ in range(2):
        os.kill(launched.pid, signal.SIGTERM)
        time.sleep(1)  # two at once are one
    assert launched.status() == 143
    assert not any(map(is_running, launched.others))


@pytest.mark.attack("processes", "Ctrl-C: SIGINT to the whole group", "the training says once how to go on")
def test_ctrl_c_in_a_terminal_is_told_once(ask, tmp_path):
    launched = Launched(ask, tmp_path)
    os.killpg(launched.pid, signal.SIGINT)
    assert launched.status() == 130
    assert launched.stderr.count("says how to go on") == 1


@pytest.mark.attack("processes", "`nohup`: a hangup of the terminal", "the training goes on")
def test_an_ignored_hangup_stays_ignored(ask, tmp_path):
    launched = Launched(ask, tmp_path, ranks=2, ignore=signal.SIGHUP)
    os.kill(launched.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert all(map(is_running, [launched.pid, *launched.others]))
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.status() == 143
