"""A server at work: `/health`, the limit of requests at a time, clients that leave, and the end."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import torch
from safetensors.torch import load

from tests.serving.server import server_process
from tests.serving.test_refusals import refused


MOST = 2  # --max-concurrent-requests
PATIENCE = 20  # seconds


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


class Gated:
    """A server whose forwards wait between `hold` and `release`."""

    def __init__(self, url: str, process, folder: Path):
        self.url, self.process, self.folder = url, process, folder
        self.executor = ThreadPoolExecutor(8)

    def hold(self) -> None:
        (self.folder / "hold").touch()

    def release(self) -> None:
        (self.folder / "hold").unlink(missing_ok=True)

    def forwards(self) -> list[list[int]]:
        """Shapes of `input_ids` of all forwards so far."""
        path = self.folder / "forwards"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def score(self, length: int, *, count: int = 1, timeout: float = PATIENCE) -> requests.Response:
        body = {"sequences": [[5] * length] * count, "num_scored": [1] * count}
        return requests.post(f"{self.url}/v1/hidden_states", json=body, timeout=timeout)

    def score_once_taken(self, length: int) -> requests.Response:
        """A request that another one, which asks whether the places are taken, may have taken the place of."""
        while (response := self.score(length)).status_code == 503:
            time.sleep(0.05)
        return response

    def see_who_left(self) -> None:
        """Let the server's event loop run past the end of earlier connections."""
        assert requests.get(f"{self.url}/health", timeout=PATIENCE).ok

    def start(self, length: int, **options) -> Future:
        """Send a request and wait until its forward has begun."""
        before = len(self.forwards())
        future = self.executor.submit(self.score, length, **options)
        wait_for(lambda: len(self.forwards()) > before)
        return future


@contextmanager
def serve_gated(path: str, folder: Path) -> Iterator[Gated]:
    env = {"GATE_FOLDER": str(folder), "HF_MODULES_CACHE": str(folder / "modules")}
    flags = ["--trust-remote-code", "--max-concurrent-requests", str(MOST), "--batch-size", "2"]
    with server_process(path, *flags, env=env) as (url, process):
        server = Gated(url, process, folder)
        try:
            yield server
        finally:
            server.release()
            server.executor.shutdown()


@pytest.fixture(scope="module")
def running(gated_path, tmp_path_factory) -> Iterator[Gated]:
    with serve_gated(gated_path, tmp_path_factory.mktemp("gate")) as server:
        yield server


@pytest.fixture
def server(running) -> Iterator[Gated]:
    """The same server for every test, released and idle."""
    yield running
    running.release()
    wait_for(lambda: running.score(2).status_code == 200)


def test_health_answers_during_a_forward(server):
    server.hold()
    running = server.start(3)
    assert requests.get(f"{server.url}/health", timeout=PATIENCE).json() == {"status": "ok"}
    assert not running.done()
    server.release()
    assert running.result().status_code == 200


def test_more_requests_than_are_taken_at_a_time_get_503_and_when_to_come_back(server):
    before = len(server.forwards())
    server.hold()
    first = server.start(3)
    second = server.executor.submit(server.score_once_taken, 4)  # waits for its turn
    head = f"{server.url}/v1/head"
    wait_for(lambda: requests.get(head, timeout=PATIENCE).status_code == 503)
    for send in (lambda: server.score(5), lambda: requests.get(head, timeout=PATIENCE)):
        response = send()
        assert refused(response, 503).startswith("2 requests are in flight, the most that this server takes at a time")
        assert response.headers["retry-after"] == "1"
    assert server.forwards()[before:] == [[1, 3]]  # one at a time
    server.release()
    assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert server.forwards()[before:] == [[1, 3], [1, 4]]
    assert requests.get(head, timeout=PATIENCE).status_code == 200


def test_a_client_that_left_while_it_waited_is_not_scored(server):
    before = len(server.forwards())
    server.hold()
    first = server.start(3)
    with pytest.raises(requests.Timeout):
        server.score(4, timeout=0.3)
    server.see_who_left()
    server.release()
    assert first.result().status_code == 200
    assert server.score(5).status_code == 200
    assert server.forwards()[before:] == [[1, 3], [1, 5]]


def test_a_client_that_left_while_it_was_scored_is_not_scored_further(server):
    before = len(server.forwards())
    server.hold()
    with pytest.raises(requests.Timeout):
        server.start(4, count=6, timeout=1.5).result()
    server.see_who_left()
    server.release()
    assert server.score(5).status_code == 200
    assert server.forwards()[before:] == [[2, 4], [1, 5]]


def test_clients_that_left_in_the_middle_of_their_request_give_their_places_back(server):
    host, port = server.url.removeprefix("http://").split(":")
    connections = [socket.create_connection((host, int(port)), timeout=PATIENCE) for _ in range(MOST)]
    for connection in connections:
        headers = b"Host: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\n" + headers)
        assert b"100 Continue" in connection.recv(100)  # it has its place
        connection.sendall(b"{")
    assert server.score(3).status_code == 503
    for connection in connections:
        connection.close()
    wait_for(lambda: server.score(3).status_code == 200)
    assert "Traceback" not in server.process.log.read_text()


def test_longest_sequences_go_first_and_answers_keep_their_order(server):
    before = len(server.forwards())
    body = {"sequences": [[5, 6], [7] * 9, [8, 8, 8], [9] * 9, [7, 6]], "num_scored": [1, 2, 1, 4, 1]}
    together = requests.post(f"{server.url}/v1/hidden_states", json=body)
    assert server.forwards()[before:] == [[2, 9], [2, 3], [1, 2]]
    alone = [
        requests.post(f"{server.url}/v1/hidden_states", json={"sequences": [ids], "num_scored": [n]})
        for ids, n in zip(*body.values(), strict=True)
    ]
    expected = torch.cat([load(response.content)["hidden_states"] for response in alone])
    torch.testing.assert_close(load(together.content)["hidden_states"], expected, atol=1e-5, rtol=0)


def test_sigterm_ends_the_server_with_status_0_after_what_it_is_scoring(gated_path, tmp_path):
    with serve_gated(gated_path, tmp_path) as server:
        server.hold()
        last = server.start(3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        server.release()
        assert last.result().status_code == 200
        assert server.process.wait(PATIENCE) == 0
        assert "Traceback" not in server.process.log.read_text()
