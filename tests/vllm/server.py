"""A vLLM server with its own Python environment and its own process group, for the time of a `with` block."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.distributed.launch import free_port


PYTHON = os.environ.get("OPD_TRL_VLLM_PYTHON")  # `make test-vllm` sets it
MAX_LENGTH = 512
START_LIMIT = 240  # seconds
STOP_LIMIT = 15


@contextmanager
def vllm_server(model: str, log: Path, *options: str) -> Iterator[str]:
    """Serve a model in float32 on the CPU and yield the server's url; end every process of it afterwards.

    Args:
        model: a path.
        log: file for what the server prints; its end is part of the error where the server does not start.
        options: further ones of vLLM's command line.

    Raises:
        RuntimeError: the server ends before it answers, or does not answer in time.
    """
    port = free_port()
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", port, "--dtype", "float32", "--max-model-len", str(MAX_LENGTH), "--enforce-eager", *options]
    with log.open("w") as output:
        # A group of its own: the engine and its worker outlive a killed parent.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, log)
        yield url
    finally:
        end_group(process)


def environment() -> dict[str, str]:
    """This process's environment without its Python path, and vLLM's settings for a few CPU cores."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return inherited | {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    """Return when the server is healthy."""
    give_up = time.monotonic() + START_LIMIT
    while process.poll() is None and time.monotonic() < give_up:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    state = f"hung for {START_LIMIT} s" if process.returncode is None else f"ended with {process.returncode}"
    raise RuntimeError(f"the vLLM server {state} before it answered:\n{log.read_text()[-4000:]}")


def end_group(process: subprocess.Popen) -> None:
    """Ask the whole group to end, then kill what is left of it."""
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_)
            process.wait(STOP_LIMIT)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
