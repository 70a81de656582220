"""A teacher server that fails: tried again, then a stop that says which request; never another number."""

import re
import socket
import threading
import time

import pytest
import requests
import torch

from opd_trl.teachers import TeacherServer, TeacherServerError, server, transport
from tests import tiny
from tests.serving.server import free_port, server_process
from tests.teachers.proxy import JSON_FAULTS


SEQUENCES = [[3, 5, 7, 9, 11, 20], [4, 6, 8], [30, 40, 50, 60, 70, 80, 90]]
NUM_SCORED = [3, 1, 6]
TOP_K = 4
VOCAB = 103
PASSING = ("HTTP 500", "HTTP 503", "HTTP 429", "hang up", "cut short", "silence")


def client(url: str, **options) -> TeacherServer:
    return TeacherServer(url, **{"backoff": 0.01, "retries": 2, "timeout": 1.0, "concurrency": 3} | options)


def ask(teacher: TeacherServer, what: str = "rows 0 to 2"):
    return teacher.log_probs(SEQUENCES, NUM_SCORED, top_k=TOP_K, vocab_size=VOCAB, what=what)


def ask_hidden_states(teacher: TeacherServer, what: str = "rows 0 to 2"):
    return teacher.hidden_states(SEQUENCES, NUM_SCORED, hidden_size=48, what=what)


def inject(url: str, kind: str, times: int) -> None:
    requests.post(f"{url}/_fault", json={"kind": kind, "times": times}, timeout=10).raise_for_status()


def seen(url: str) -> dict[str, int]:
    return requests.get(f"{url}/_seen", timeout=10).json()


@pytest.mark.parametrize("fault", [*PASSING, "not JSON", *JSON_FAULTS])
def test_a_fault_that_passes_changes_no_number(plain, fault):
    teacher = client(plain)
    inject(plain, "", 0)
    expected = ask(teacher)
    inject(plain, fault, 1)
    for found, right in zip(ask(teacher), expected, strict=True):
        assert torch.equal(found.ids, right.ids)
        torch.testing.assert_close(found.log_probs, right.log_probs, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.sampled_log_probs, right.sampled_log_probs, rtol=0, atol=1e-6)
    assert seen(plain)["requests"] == 2


@pytest.mark.parametrize("fault", [*PASSING, "not JSON", *JSON_FAULTS])
def test_a_fault_that_stays_stops_after_the_last_attempt_and_says_which_request(plain, fault):
    teacher = client(plain)
    inject(plain, fault, 100)
    with pytest.raises(TeacherServerError, match=r"failed for step 7, rows 4 to 6, 3 attempts in \d+ s\. Last: ."):
        ask(teacher, "step 7, rows 4 to 6")
    assert seen(plain)["requests"] == 3


@pytest.mark.parametrize("fault", ["HTTP 500", "hang up", "cut short", "bytes too few", "bytes of NaN", "not JSON"])
def test_hidden_states_are_checked_and_asked_for_again_too(ours, fault):
    teacher = client(ours)
    inject(ours, "", 0)
    expected = ask_hidden_states(teacher)
    inject(ours, fault, 1)
    torch.testing.assert_close(ask_hidden_states(teacher), expected, rtol=0, atol=1e-6)
    inject(ours, fault, 100)
    with pytest.raises(TeacherServerError, match="failed for rows 0 to 2, 3 attempts"):
        ask_hidden_states(teacher)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("HTTP 500", "HTTP 500: injected"),
        ("a choice too few", "2 choices for 3 sequences"),
        ("a position too few", "6 positions for a sequence of 7 tokens"),
        ("no log-probs", "no prompt_logprobs for a sequence of 6 tokens"),
        ("an entry too few", "position 6 has the ranks 2, 3, 4, 5 among its entries, expected 1 to 4 and at most one"),
        ("NaN", "position 6 has log-probabilities that are not finite"),
        ("an id outside the vocabulary", r"ids outside the vocabulary of 103: \[1000\]"),
        ("raw logits", r"a TopK that sums to .*Is the server set to raw logits \(--logprobs-mode\)"),
        ("another model", "the answer is of model 'another'"),
        ("silence", "ReadTimeout|timed out"),
    ],
)
def test_the_stop_says_what_was_wrong(plain, fault, message):
    teacher = client(plain, retries=0)
    inject(plain, fault, 1)
    with pytest.raises(TeacherServerError, match=message):
        ask(teacher)


def test_a_request_that_the_server_refuses_is_not_tried_again(plain):
    teacher = client(plain)
    inject(plain, "HTTP 400", 100)
    with pytest.raises(TeacherServerError, match=r"refuses rows 0 to 2\. HTTP 400: injected"):
        ask(teacher)
    assert seen(plain)["requests"] == 1


def test_a_server_that_is_not_there_is_an_error_with_its_address(caplog):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        TeacherServerError, match=f"{re.escape(url)}/v1/models failed .* 3 attempts .*Connection refused"
    ):
        client(url)
    assert sum("Attempt" in line for line in caplog.messages) == 2


def test_a_server_that_is_still_starting_is_waited_for(served_path):
    port = free_port()
    found = []
    wait = {"retries": 60, "backoff": 0.5, "timeout": 30.0}
    thread = threading.Thread(target=lambda: found.append(client(f"http://127.0.0.1:{port}", **wait)))
    thread.start()
    with server_process(served_path, port=port):
        thread.join(60)
    assert found[0].is_ours


def test_a_wrong_or_missing_key_names_the_variable(served_path):
    with server_process(served_path, env={"OPD_TRL_API_KEY": "secret\n"}) as (url, _):
        for key in (None, "wrong"):
            with pytest.raises(TeacherServerError, match=r"HTTP 401.*Set OPD_TRL_API_KEY"):
                client(url, api_key=key)
        assert client(url, api_key=" secret\r\n").is_ours


def test_requests_run_at_once_up_to_the_limit(plain):
    teacher = client(plain, timeout=30.0)
    inject(plain, "", 0)
    rows = list(range(12))
    found = teacher.transport.map(lambda _: ask(teacher)[0].sampled_log_probs, rows)
    assert len(found) == 12
    assert 2 <= seen(plain)["at_once"] <= 3


def test_the_first_failure_ends_the_other_requests(plain):
    teacher = client(plain, retries=50, backoff=5.0)
    failed = threading.Event()

    def send(row: int):
        if row:
            return ask(teacher)  # waits seconds for its second attempt
        failed.wait(10)
        raise TeacherServerError("the first")

    inject(plain, "HTTP 500", 1000)
    threading.Timer(0.5, failed.set).start()
    start = time.monotonic()
    with pytest.raises(TeacherServerError, match="the first"):
        teacher.transport.map(send, range(3))
    assert time.monotonic() - start < 5


def test_pauses_double_up_to_a_bound(monkeypatch, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: False)
        monkeypatch.setattr(transport, "LONGEST_PAUSE", 4.0)
        with pytest.raises(TeacherServerError):
            client(f"http://127.0.0.1:{taken.getsockname()[1]}", retries=5, backoff=1.0)
    assert [line.rsplit(" in ", 1)[1] for line in caplog.messages] == ["1 s.", "2 s.", "4 s.", "4 s.", "4 s."]


@pytest.mark.parametrize("same", [True, False])
def test_a_server_that_restarts_is_recognised_by_the_probe(served_path, tmp_path, same, caplog):
    port = free_port()
    other = served_path if same else tiny.save(tmp_path / "other", seed=5, hidden_size=48)
    flags = ("--served-model-name", "teacher")
    with server_process(served_path, *flags, port=port) as (_, process):
        teacher = client(f"http://127.0.0.1:{port}", retries=40, backoff=0.5, timeout=30.0)
        teacher.probe(list(range(10, 40)), top_k=TOP_K, vocab_size=VOCAB)
        expected = ask(teacher)
        process.kill()
        process.wait()
    answer = []

    def request():
        try:
            answer.append(ask(teacher))
        except TeacherServerError as error:
            answer.append(error)

    thread = threading.Thread(target=request)
    thread.start()  # while nobody listens
    with server_process(other, *flags, port=port):
        thread.join(60)
    if same:
        torch.testing.assert_close(answer[0][0].log_probs, expected[0].log_probs, rtol=0, atol=1e-6)
        assert "is back, with the same model" in caplog.text
    else:
        assert "came back with another model" in str(answer[0])


def test_the_probe_text_has_what_tokenizers_disagree_about():
    assert not server.PROBE_TEXT.isascii()
    assert "\n\n" in server.PROBE_TEXT
