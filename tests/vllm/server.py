"""A vLLM server with its own Python environment and its own process group, for the time of a `with` block."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serving.server import end, free_port, wait_until_healthy


PYTHON = os.environ.get("OPD_TRL_VLLM_PYTHON")  # `make test-vllm` sets it
MAX_LENGTH = 512
START_LIMIT = 240  # seconds


#: Hidden states of every token in place of completions.
POOLING = ["--runner", "pooling", "--convert", "embed", "--pooler-config.task", "token_embed"]


@contextmanager
def vllm_server(model: str, log: Path, *options: str) -> Iterator[str]:
    """`vllm_process`, of which the server's url is enough."""
    with vllm_process(model, log, *options) as (url, _):
        yield url


@contextmanager
def vllm_process(
    model: str, log: Path, *options: str, port: int | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Serve a model in float32 on the CPU; yield the server's url and process, whose group is ended afterwards.

    Args:
        model: a path.
        log: file for what the server prints; its end is part of the error where the server does not start.
        options: further ones of vLLM's command line.
        port: a free one by default.

    Raises:
        RuntimeError: the server ends before it answers, or does not answer in time.
    """
    port = port or free_port()
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--max-model-len", str(MAX_LENGTH)]
    command += ["--enforce-eager", *options]
    with log.open("w") as output:
        # A group of its own: the engine and its worker outlive a killed parent.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )
    process.log = log
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(process, url, limit=START_LIMIT)
        yield url, process
    finally:
        end(process)


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
