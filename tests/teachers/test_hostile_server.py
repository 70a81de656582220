"""A teacher server that is hostile: bounded in bytes and time, named in one line, told neither key nor cookies."""

import re
import resource
import socket
import threading

import pytest

from opd_trl.addresses import Address
from opd_trl.cli.main import main
from opd_trl.screen import SPELT
from opd_trl.teachers import TeacherServer, TeacherServerError
from tests.teachers.hostile import KINDS, TLS, hostile


TIMEOUT = 0.7
SLOW = [kind for kind in KINDS if kind.startswith("drip")] + ["continue", "no_http"]
REFUSED = {"redirect": 302, "no_content": 204, "escapes": 400, "deep_refusal": 400}
MESSAGES = {
    "gzip": "the answer is compressed (gzip)",
    "endless": "larger than the 1048576 bytes",
    "endless_chunks": "larger than the 1048576 bytes",
    "huge": "larger than the 1048576 bytes",
    "deep": "not JSON (maximum recursion depth",
    "long_number": "not JSON (Exceeds the limit",
    "twice": "an object has a key twice",
    "cut": "IncompleteRead",
    "endless_refusal": "HTTP 500: xxx",
    "no_model": "it lists no model. Start it with one.",
    "drip": "timed out",
    "drip_head": "timed out",
}


@pytest.fixture(scope="module")
def served():
    with hostile() as (url, seen):
        yield url, seen


def connect(url: str, **options) -> TeacherServer:
    return TeacherServer(url, **{"backoff": 0.01, "retries": 0, "timeout": TIMEOUT, "concurrency": 2} | options)


@pytest.mark.attack(
    "client",
    "answers that are compressed, endless, dripped, cut, redirected, too deep, or of another shape",
    "each is read within its bounds, and is an error of one line",
)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "right"])
def test_a_hostile_answer_is_an_error_of_one_line(served, kind):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TeacherServerError) as caught:
        connect(f"{served[0]}/{kind}", timeout=TIMEOUT if kind in SLOW else 10.0)
    message = str(caught.value)
    assert MESSAGES.get(kind, "") in message
    assert caught.value.status == REFUSED.get(kind)
    assert "\n" not in message.replace(" ", "")
    assert not set(message) & set(map(chr, SPELT))
    assert len(message) < 1500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 2**10  # KiB


def test_a_bad_answer_is_asked_for_again_and_a_refusal_is_not(served):
    url, seen = served
    for kind, attempts in (("models_0", 3), ("deep", 3), ("gzip", 3), ("redirect", 1), ("escapes", 1)):
        seen.clear()
        with pytest.raises(TeacherServerError):
            connect(f"{url}/{kind}", retries=2, timeout=10.0)
        assert len(seen) == attempts


def test_a_request_after_a_slow_answer_has_its_whole_time(served):
    server = connect(f"{served[0]}/right", timeout=5.0)
    server.transport.call("/v1/models", len, what="again", most=1000)
    assert server.transport._pool.num_connections == 1


@pytest.mark.attack("client", "a cookie of the server", "is not sent back")
@pytest.mark.attack("client", "a key with a last newline", "is sent without it, and shown nowhere")
@pytest.mark.attack("client", "user and password in an address", "are sent as such, and shown nowhere")
def test_what_a_request_carries(served, caplog):
    url, seen = served
    seen.clear()
    server = connect(f"{url}/right", api_key="s3cret-Key\r\n")
    server.transport.call("/v1/models", len, what="again", most=1000)
    assert [headers["Authorization"] for headers in seen] == ["Bearer s3cret-Key"] * 2
    assert not any("Cookie" in headers for headers in seen)
    seen.clear()
    with_user = connect(url.replace("://", "://me:p%40ss@") + "/right/v1", api_key="s3cret-Key")
    assert seen[0]["Authorization"] == "Basic bWU6cEBzcw=="
    assert with_user.url == f"{url}/right"
    with pytest.raises(TeacherServerError) as caught:
        connect(url.replace("://", "://me:p%40ss@") + "/deep", api_key="s3cret-Key", retries=1, timeout=10.0)
    shown = f"{caught.value} {caplog.text} {vars(with_user)} {vars(with_user.transport)['url']}"
    assert not re.search("s3cret|p%40ss|p@ss", shown)


@pytest.mark.attack("client", "a key that no header can carry", "one line at once, without the key")
@pytest.mark.parametrize("key", ["schl\u00fcssel", "se\ncret", "\ufeffsecret", "secret\x00", "\u20acsecret"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key, monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"the key \(OPD_TRL_API_KEY\) cannot be sent in a header") as caught:
        connect("http://127.0.0.1:1", api_key=key)
    assert key not in str(caught.value)
    assert "cret" not in str(caught.value)
    if "\x00" not in key:  # which no environment can hold
        monkeypatch.setenv("OPD_TRL_API_KEY", key)
        assert main(["serve-teacher", "--model", "m"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be sent in a header" in line
        assert key not in line


MALFORMED = (
    "http://127.0.0.1:99999", "http://127.0.0.1:0", "http://127.0.0.1:-1", "http://127.0.0.1:x", "http://[::1",
    "http://[::1]x:80", "http://", "http:///v1", "http://:8000", "http://a b:80", " http://a", "http://a\n", "ftp://a",
    "HTTP//a", "a:8000", "http://a..b", "http://a:b:c", "http://\u0430:80", "http://a/\x1b[2J", "http://%31:80",
    "file:///etc/passwd", "http://a?x=1", "http://a#b",
)  # fmt: skip
WITH_PASSWORD = (
    "http://me:hunter2@h:99999", "http://me:hunter2@[::1", "ftp://me:hunter2@h", "me:hunter2@h:8000",
    "http://me:hunt/er2@h", "http://me:hunt#er2@h", "http://me:hunt er2@h", "http://me:hunt?er2@h",
    "http://h/?api_key=hunter2", "http://h?hunter2", "http://me:x@hunter2@h..h", "http://me:hunter2@h\x00",
)  # fmt: skip


@pytest.mark.attack("client", "a malformed address", "one line at once, without user, password or query")
@pytest.mark.parametrize("text", [*MALFORMED, *WITH_PASSWORD])
def test_a_malformed_address_is_one_line_at_once(text):
    with pytest.raises(ValueError, match="is not the address of a server") as caught:
        connect(text, retries=50, backoff=10.0)
    assert "hunt" not in str(caught.value)
    assert "er2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://teacher_1.local/v1/", "https://teacher_1.local"),
        ("http://[fe80::1]:8000/a/v1", "http://[fe80::1]:8000/a"),
        ("http://user@10.0.0.1", "http://10.0.0.1"),
        ("http://localhost:", "http://localhost"),
    ],
)
def test_an_address_is_shown_as_its_root(text, shown):
    assert str(Address.parse(text)) == shown


@pytest.fixture(scope="module")
def encrypted():
    with hostile(tls=True) as (url, _):
        yield f"{url}/right"


@pytest.mark.attack("client", "a certificate of an unknown CA, or of another host", "not tried again; one line")
def test_a_certificate_that_is_not_trusted_is_named_with_what_to_set(encrypted, monkeypatch, caplog):
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TeacherServerError, match=r"certificate is not trusted \(.+\)\. Name .* SSL_CERT_FILE"):
        connect(encrypted, retries=50, timeout=10.0)
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "ca.pem"))
    with pytest.raises(TeacherServerError, match=r"certificate is not valid for '127\.0\.0\.1'"):
        connect(encrypted.replace("localhost", "127.0.0.1"), retries=50, timeout=10.0)
    assert not caplog.messages


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_ca_is_named_in_the_environment(encrypted, monkeypatch, name, tmp_path):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(name, str(TLS / "ca.pem"))
    assert connect(encrypted, timeout=10.0).model == "t"
    monkeypatch.setenv(name, str(tmp_path / "none.pem"))
    with pytest.raises(ValueError, match=f"{name}=.*none.pem' holds no certificates that can be read"):
        connect(encrypted)


def test_https_to_a_server_of_http_is_not_tried_again():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(TeacherServerError, match=r"does not answer in TLS .* Write http://"):
            connect(f"https://127.0.0.1:{listening.getsockname()[1]}", retries=50, timeout=10.0)
