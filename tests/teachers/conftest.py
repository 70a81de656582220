import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from opd_trl.teachers.server import PROBE_TEXT
from tests import tiny
from tests.serving.server import free_port, serve


@contextmanager
def proxy(upstream: str, *flags: str) -> Iterator[str]:
    """Yield the URL of `proxy.py` in front of a server."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("proxy.py"), str(port), upstream, *flags],
        env=os.environ,
        stdin=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            try:
                requests.get(f"{url}/_seen", timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def served_path(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("served"), seed=1, hidden_size=48)


@pytest.fixture(scope="session")
def reader_path(tmp_path_factory) -> str:
    """A teacher that has learned to read, as every teacher of text has."""
    return tiny.save_reader(tmp_path_factory.mktemp("reader"), PROBE_TEXT, seed=1, hidden_size=48)


@pytest.fixture(scope="session")
def server_url(served_path) -> str:
    """A real `opd-trl serve-teacher`."""
    with serve(served_path) as url:
        yield url


@pytest.fixture(scope="session")
def ours(server_url) -> str:
    """The same behind a proxy that can break its answers."""
    with proxy(server_url) as url:
        yield url


@pytest.fixture(scope="session")
def plain(server_url) -> str:
    """The same as a completions endpoint like vLLM's."""
    with proxy(server_url, "--plain") as url:
        yield url
