"""Strangers, slow clients and large requests against one server whose limits are short enough to be waited for."""

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from opd_trl.serving.service import Room
from tests.serving.server import server_process
from tests.serving.test_load import PATIENCE, Gated, wait_for
from tests.serving.test_refusals import refused


KEY = "a-key"
AUTH = {"Authorization": f"Bearer {KEY}"}
MOST = 2  # --max-concurrent-requests
CONNECTIONS = 8 * MOST
LENGTH = 400  # --max-length


class Server(Gated):
    """A server that asks for a key, and what is seen of it from outside."""

    def score(self, length: int, *, count: int = 1, timeout: float = PATIENCE) -> requests.Response:
        body = {"sequences": [[5] * length] * count, "num_scored": [1] * count}
        return requests.post(f"{self.url}/v1/hidden_states", json=body, headers=AUTH, timeout=timeout)

    def complete(self, content: bytes) -> requests.Response:
        return requests.post(f"{self.url}/v1/completions", data=content, headers=AUTH, timeout=3 * PATIENCE)

    def connect(self, *, receive: int | None = None) -> socket.socket:
        """A connection; `receive` bounds what the system takes in for a client that does not read."""
        connection = socket.socket()
        if receive:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", int(self.url.rpartition(":")[2])))
        return connection

    def memory(self, field: str) -> int:
        """MiB, of /proc."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(field))

    def children(self) -> list[int]:
        folder = Path(f"/proc/{self.process.pid}/task")
        found = [int(pid) for path in folder.glob("*/children") for pid in path.read_text().split()]
        return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def clients(self) -> set[int]:
        """Ports of those that the server holds a connection of."""
        return {found.raddr.port for found in psutil.Process(self.process.pid).net_connections("tcp") if found.raddr}


def head(path: str, method: str = "GET", key: str | None = KEY, **headers: str) -> bytes:
    """The first lines of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *([f"Authorization: Bearer {key}"] if key else [])]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def ended(connection: socket.socket) -> bool:
    """Wait for the end of a connection; False where it stays open."""
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.fixture(scope="module")
def running(gated_path, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    env = {"GATE_FOLDER": str(folder), "HF_MODULES_CACHE": str(folder / "modules"), "OPD_TRL_API_KEY": KEY}
    flags = ["--trust-remote-code", "--max-concurrent-requests", str(MOST), "--max-length", str(LENGTH)]
    with server_process(gated_path, *flags, env=env, module="tests.serving.impatient") as (url, process):
        server = Server(url, process, folder)
        try:
            yield server
        finally:
            server.release()
            server.executor.shutdown()


@pytest.fixture
def server(running) -> Iterator[Server]:
    yield running
    running.release()


@pytest.mark.attack("server", "a client that sends nothing, or its headers byte by byte", "closed after 10 seconds")
@pytest.mark.parametrize("sent", [b"", b"GET /he", head("/health") + b"GET /"])
def test_who_is_slow_to_ask_is_closed(server, sent):
    with server.connect() as connection:
        connection.sendall(sent)
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.2):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        if sent:
            thread.start()
        assert ended(connection)
        stop.set()
    assert server.score(3).status_code == 200


@pytest.mark.attack(
    "server", "more idle connections than may be open", "the oldest makes room; a request with the key keeps its own"
)
def test_idle_connections_lock_nobody_out(server):
    body = b'{"sequences": [[5, 6]], "num_scored": [1]}'
    with server.connect() as honest:
        honest.sendall(head("/v1/hidden_states", "POST", Content_Length=str(len(body)), Expect="100-continue"))
        assert b"100 Continue" in honest.recv(100)  # let in
        idle = [server.connect() for _ in range(3 * CONNECTIONS)]
        assert requests.get(f"{server.url}/health", timeout=PATIENCE).ok
        assert len(server.clients()) <= CONNECTIONS + 2  # of which some are about to be closed
        honest.sendall(body)
        assert b"200 OK" in honest.recv(100)
        assert ended(idle[0])
    for connection in idle:
        connection.close()


@pytest.mark.attack("server", "large answers are asked for and not read", "closed after 30 seconds, memory given back")
def test_who_does_not_read_is_closed_and_holds_no_place(server):
    body = json.dumps({"prompt": [[5] * LENGTH] * 4, "prompt_logprobs": 100}).encode()
    slow = [server.connect(receive=4096) for _ in range(MOST)]
    for connection in slow:
        connection.sendall(head("/v1/completions", "POST", Content_Length=str(len(body))) + body)
    for connection in slow:
        assert connection.recv(12) == b"HTTP/1.1 200"  # the second, once the first one has been closed
    wait_for(lambda: server.score(LENGTH).status_code == 200)
    wait_for(lambda: server.clients().isdisjoint(connection.getsockname()[1] for connection in slow))
    assert all(ended(connection) for connection in slow)


def test_answers_that_nobody_reads_make_the_next_ones_wait():
    async def play() -> list[str]:
        room, seen = Room(10), []
        await room.take(25)  # larger than all the room, and alone

        async def second() -> None:
            await room.take(4)
            seen.append("second")

        waiting = asyncio.create_task(second())
        await asyncio.sleep(0)
        seen.append("waits")
        room.give_back(25)
        await waiting
        await room.take(6)
        assert room.taken == 10
        return seen

    assert asyncio.run(play()) == ["waits", "second"]


@pytest.mark.attack("server", "a body in chunks of one byte, which cost 20 microseconds each", "HTTP 411, closed")
@pytest.mark.parametrize("path", ["/v1/completions", "/health"])
def test_a_body_that_does_not_say_its_length_is_not_read(server, path):
    with server.connect() as connection:
        connection.sendall(head(path, "POST", key=None if path == "/health" else KEY, Transfer_Encoding="chunked"))
        answer = connection.recv(1 << 16)
        assert (b" 405 " if path == "/health" else b" 411 ") in answer
        assert ended(connection)
    with server.connect() as connection:
        with suppress(OSError):
            connection.sendall(head(path, "POST", Transfer_Encoding="chunked") + b"1\r\nx\r\n" * 200_000)
        assert ended(connection)


@pytest.mark.attack("server", "thousands of requests that are not HTTP", "60 lines in the log in a minute")
def test_strangers_do_not_fill_the_log(server):
    before = server.process.log.read_text().count("\n")
    for _ in range(60):
        with server.connect() as connection:
            connection.sendall(b"\x16\x03\x01\x1b[2J\r\n\r\n")
            assert ended(connection)
    written = server.process.log.read_text()
    assert written.count("\n") - before <= 10  # 5 a minute; a minute may have begun
    assert "\x1b" not in written


@pytest.mark.attack("server", "JSON of up to 16 MiB that takes seconds to read", "/health and others are answered")
def test_large_json_is_read_in_another_process_that_may_be_killed(server):
    content = b'{"num_scored": [1], "sequences": [' + b"[1]," * 2**18 + b"[1]]}"
    assert server.complete(b'{"prompt": [5, 6], "prompt_logprobs": 1}'.ljust(1 << 20)).status_code == 200
    (child,) = server.children()
    with ThreadPoolExecutor(1) as executor:
        path = f"{server.url}/v1/hidden_states"
        answer = executor.submit(requests.post, path, data=content, headers=AUTH, timeout=3 * PATIENCE)
        for _ in range(3):
            assert requests.get(f"{server.url}/health", timeout=PATIENCE).ok
        assert "sequences holds 262145 sequences, at most 64" in refused(answer.result(), 413)
        os.kill(child, signal.SIGSTOP)
        answer = executor.submit(requests.post, path, data=content, headers=AUTH, timeout=3 * PATIENCE)
        assert server.score(3).status_code == 200
        os.kill(child, signal.SIGKILL)
        assert "the process that reads large requests was ended (exit status -9)" in refused(answer.result(), 503)
    assert server.complete(b'{"prompt": [5, 6], "prompt_logprobs": 1}'.ljust(1 << 20)).status_code == 200
    assert server.children() != [child]


@pytest.mark.attack("server", "texts of megabytes", "HTTP 400; what cannot fit is not tokenized whole")
@pytest.mark.parametrize("count", [1, 20])
def test_a_text_that_cannot_fit_is_not_tokenized_whole(server, count):
    before = server.memory("VmHWM")
    texts = ["short"] * (count - 1) + ["1" * (8 << 20)]
    message = refused(server.complete(json.dumps({"prompt": texts, "prompt_logprobs": 1}).encode()), 400)
    assert message.startswith(
        f"prompt[{count - 1}] has more than 400 tokens in its first 1600 characters, at most 400"
    )
    assert server.memory("VmHWM") - before < 200


def test_more_texts_than_are_taken_are_refused_before_one_is_tokenized(server):
    message = refused(server.complete(json.dumps({"prompt": ["a"] * 65, "prompt_logprobs": 1}).encode()), 413)
    assert message.startswith("prompt holds 65 sequences, at most 64")


@pytest.mark.attack("server", "as many clients as --max-concurrent-requests, each asking again at once", "no HTTP 503")
def test_as_many_clients_as_places_are_never_told_that_the_server_is_full(server):
    def client(_: int) -> list[int]:
        with requests.Session() as session:
            body = {"sequences": [[5] * 9] * 2, "num_scored": [8, 8]}
            path = f"{server.url}/v1/hidden_states"
            return [session.post(path, json=body, headers=AUTH, timeout=PATIENCE).status_code for _ in range(15)]

    with ThreadPoolExecutor(MOST) as executor:
        assert [status for found in executor.map(client, range(MOST)) for status in found] == [200] * 15 * MOST


@pytest.mark.attack(
    "server", "SIGTERM during a forward that outlasts the 10 seconds", "exit status 0 after them, no traceback"
)
def test_sigterm_does_not_wait_for_a_forward_nor_for_a_slow_reader(server):
    slow = server.connect(receive=4096)
    body = json.dumps({"prompt": [[5] * LENGTH] * 4, "prompt_logprobs": 100}).encode()
    slow.sendall(head("/v1/completions", "POST", Content_Length=str(len(body))) + body)
    assert slow.recv(12) == b"HTTP/1.1 200"
    assert server.complete(b'{"prompt": [5, 6], "prompt_logprobs": 1}'.ljust(1 << 20)).status_code == 200
    server.hold()
    answer = server.start(3)
    (child,) = server.children()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0
    assert "the server is ending" in refused(answer.result(), 503)
    assert "Traceback" not in server.process.log.read_text()
    wait_for(lambda: not Path(f"/proc/{child}").exists())
    slow.close()
