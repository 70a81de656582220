"""A teacher server in this process that is wrong or hostile: `http://HOST:PORT/KIND` is one kind of it."""

import contextlib
import gzip
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


TLS = Path(__file__).with_name("tls")
MODELS = {"data": [{"id": "t", "object": "model", "owned_by": "opd_trl", "max_model_len": 1024}]}
ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31mfake: all good\r\u202e"
#: Seconds for which a slow kind goes on.
SLOW = 20


class Hostile(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[dict[str, str]]

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.seen.append(dict(self.headers))
        with contextlib.suppress(OSError):  # the client has gone, as it should
            KINDS[self.path.split("/")[1]](self)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def answer(self, content: bytes, status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def for_ever(self, head: bytes, part: bytes, pause: float = 0.0):
        self.close_connection = True
        self.wfile.write(head)
        end = time.monotonic() + SLOW
        while time.monotonic() < end:
            self.wfile.write(part)
            time.sleep(pause)


def answers(content: bytes | str, status: int = 200, **headers: str) -> Callable[[Hostile], None]:
    """A kind that sends one answer."""
    content = content.encode() if isinstance(content, str) else content
    return lambda handler: handler.answer(content, status, **headers)


def sends(head: bytes, part: bytes, pause: float = 0.0) -> Callable[[Hostile], None]:
    """A kind that sends one thing again and again."""
    return lambda handler: handler.for_ever(head, part, pause)


OK = b"HTTP/1.1 200 OK\r\n"
KINDS: dict[str, Callable[[Hostile], None]] = {
    "right": answers(json.dumps(MODELS), Set_Cookie="session=1"),
    "gzip": answers(gzip.compress(b" " * 10**8, compresslevel=1), Content_Encoding="gzip"),
    "deflate": answers(b"x", Content_Encoding="identity, deflate"),
    "endless": sends(OK + b"\r\n", b" " * 65536),
    "endless_chunks": sends(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"),
    "huge": answers(b"{}", Content_Length=str(10**15)),
    "drip": sends(OK + b"Content-Length: 1000\r\n\r\n", b" ", 0.1),
    "drip_head": sends(OK, b"X: a\r\n", 0.1),
    "drip_status": sends(b"HTTP/1.1 20", b"0", 0.1),
    "drip_chunks": sends(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.1),
    "drip_trailer": sends(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n", 0.1),
    "continue": sends(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
    "many_headers": sends(OK, b"X: a\r\n"),
    "long_header": sends(OK + b"X: ", b"a" * 65536),
    "no_http": sends(b"\x16\x03\x01" + ESCAPES.encode(), b"\r\n\r\n", 0.1),
    "bad_chunk": sends(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"ZZZ\r\nabc\r\n"),
    "cut": answers(json.dumps(MODELS), Content_Length="9999", Connection="close"),
    "two_lengths": answers(json.dumps(MODELS), Content_Length="5, 6"),
    "deep": answers("[" * 200_000),
    "deep_object": answers('{"a":' * 200_000),
    "not_utf8": answers(b'{"data": "\xff\xfe"}'),
    "long_number": answers('{"data": ' + "9" * 5000 + "}"),
    "twice": answers('{"data": [], "data": [{"id": "t"}]}'),
    "empty": answers(""),
    "none": answers("null"),
    "redirect": answers("", 302, Location="http://127.0.0.1:1/"),
    "no_content": answers("", 204),
    "escapes": answers(json.dumps({"error": {"message": ESCAPES + "x" * 10_000}}), 400),
    "deep_refusal": answers("[" * 200_000, 400),
    "endless_refusal": sends(b"HTTP/1.1 500 X\r\n\r\n", b"x" * 65536),
    "no_model": answers('{"data": []}'),
    "long_name": answers(json.dumps({"data": [{"id": "n" * 10_000}]})),
    **{
        f"models_{number}": answers(json.dumps(body))
        for number, body in enumerate(
            [
                *({"data": data} for data in ("x", ["x"], {"a": 1}, [{"a": 1}], [None], 5, None, True, [[]])),
                *({"data": [{"id": name}]} for name in (5, None, "", True, ["t"], {"a": 1})),
                *(
                    {"data": [{"id": "t", "max_model_len": window}]}
                    for window in ("abc", -5, 0, 1, 1.5, True, [1], float("nan"), float("inf"))
                ),
            ]
        )
    },
}


@contextmanager
def hostile(*, tls: bool = False) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the root of the server, behind which a kind is to stand, and the headers of the requests that came."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.daemon_threads, server.seen = True, []
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / "server.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # of a client that does not trust it
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http{'s' * tls}://{'localhost' if tls else '127.0.0.1'}:{server.server_address[1]}", server.seen
    finally:
        server.shutdown()
        server.server_close()
