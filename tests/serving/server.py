"""Start `opd-trl serve-teacher` in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests


ROOT = Path(__file__).parents[2]
START_LIMIT = 180  # seconds
END_LIMIT = 30


def command(*flags: str, module: str = "opd_trl.cli.main") -> list[str]:
    """The command line of a server."""
    return [sys.executable, "-m", module, "serve-teacher", *flags]


def environment(env: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a server: no key unless `env` gives one."""
    inherited = {name: value for name, value in os.environ.items() if name != "OPD_TRL_API_KEY"}
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return inherited | own | (env or {})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serve(model_path: str, *flags: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """Yield the URL of a server of `model_path` once it answers; its process group is ended afterwards.

    Args:
        model_path: `--model`.
        flags: of `opd-trl serve-teacher`.
        env: added to the environment, e.g. `OPD_TRL_API_KEY`.
    """
    with server_process(model_path, *flags, env=env) as (url, _):
        yield url


@contextmanager
def server_process(
    model_path: str,
    *flags: str,
    env: dict[str, str] | None = None,
    port: int | None = None,
    module: str = "opd_trl.cli.main",
) -> Iterator[tuple[str, subprocess.Popen]]:
    """As `serve`, with the process too; `process.log` is the file of its output, `module` what is run."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(
            command("--model", model_path, "--port", str(port), *flags, module=module),
            cwd=ROOT,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        process.log = Path(log.name)
        try:
            wait_until_healthy(process, url)
            yield url, process
        finally:
            end(process)


def wait_until_healthy(process: subprocess.Popen, url: str, *, limit: float = START_LIMIT) -> None:
    """Wait for `/health`; raise with the server's output where it ends or stays silent."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.1)
    raise RuntimeError(f"no server at {url} (exit status {process.poll()}):\n{process.log.read_text()[-5000:]}")


def end(process: subprocess.Popen) -> None:
    """SIGTERM to the process group, SIGKILL where that does not end it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(END_LIMIT)
            return
        except ProcessLookupError:
            process.wait(END_LIMIT)
            return
        except subprocess.TimeoutExpired:
            continue
