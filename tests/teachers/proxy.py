"""A proxy in a process of its own that stands between a client and a real teacher server, and breaks its answers.

    python tests/teachers/proxy.py PORT UPSTREAM_URL [--plain]

`--plain` hides what only `opd-trl serve-teacher` has, so that a client sees a completions endpoint like vLLM's.
`POST /_fault {"kind": NAME, "times": N}` breaks the next N answers of the scoring endpoints; `GET /_seen` tells how
many scoring requests came and how many of them were in flight at most.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests


SCORING = ("/v1/completions", "/v1/hidden_states")
Json = dict


def last_row(body: Json) -> dict:
    return body["choices"][-1]["prompt_logprobs"][-1]


def with_last_row(body: Json, row) -> Json:
    body["choices"][-1]["prompt_logprobs"][-1] = row
    return body


def without(mapping: dict, key) -> dict:
    return {name: value for name, value in mapping.items() if name != key}


def shifted(body: Json, by: float) -> Json:
    row = {token: entry | {"logprob": entry["logprob"] + by} for token, entry in last_row(body).items()}
    return with_last_row(body, row)


def best(row: dict) -> str:
    return min(row, key=lambda token: row[token]["rank"])


def with_best(body: Json, second_rank: int = 2, **change) -> Json:
    """The last row with another entry of rank 1; the one of rank 2 gets `second_rank`."""
    row = last_row(body)
    second = next(token for token, entry in row.items() if entry["rank"] == 2)
    return with_last_row(body, row | {second: row[second] | {"rank": second_rank}, best(row): row[best(row)] | change})


# What a JSON answer of /v1/completions can look like that must not reach a loss.
JSON_FAULTS: dict[str, Callable[[Json], Json]] = {
    "a choice too few": lambda body: body | {"choices": body["choices"][:-1]},
    "a choice too many": lambda body: body | {"choices": body["choices"] * 2},
    "a position too few": lambda body: shorten(body),
    "a position too many": lambda body: lengthen(body),
    "no log-probs": lambda body: body | {"choices": [without(c, "prompt_logprobs") for c in body["choices"]]},
    "an empty position": lambda body: with_last_row(body, None),
    "an entry too few": lambda body: with_last_row(body, without(last_row(body), best(last_row(body)))),
    "ranks exchanged": lambda body: with_best(body, rank=2, second_rank=1),
    "no ranks": lambda body: with_last_row(
        body, {token: without(entry, "rank") for token, entry in last_row(body).items()}
    ),
    "NaN": lambda body: with_best(body, logprob=float("nan")),
    "infinity": lambda body: with_best(body, logprob=float("-inf")),
    "an id outside the vocabulary": lambda body: with_last_row(
        body, without(last_row(body), best(last_row(body))) | {"1000": last_row(body)[best(last_row(body))]}
    ),
    "raw logits": lambda body: shifted(body, 9.0),
    "raw logits far below zero": lambda body: shifted(body, -9.0),
    "another model": lambda body: body | {"model": "another"},
    "a list": lambda body: [body],
}


def shorten(body: Json) -> Json:
    body["choices"][-1]["prompt_logprobs"].pop()
    return body


def lengthen(body: Json) -> Json:
    rows = body["choices"][-1]["prompt_logprobs"]
    rows.append(rows[-1])
    return body


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: str
    plain: bool
    lock = threading.Lock()
    fault: tuple[str, int] = ("", 0)
    requests = in_flight = most_in_flight = 0

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == "/_seen":
            return self.send(200, json.dumps({"requests": Proxy.requests, "at_once": Proxy.most_in_flight}).encode())
        answer = requests.get(self.upstream + self.path, headers=self.key(), timeout=60)
        content = answer.content
        if self.plain and self.path == "/v1/models":
            content = content.replace(b'"opd_trl"', b'"vllm"')
        elif self.plain and self.path.startswith("/v1/"):
            return self.send(404, b'{"detail":"Not Found"}')
        return self.send(answer.status_code, content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/_fault":
            fault = json.loads(body)
            with self.lock:
                Proxy.fault = (fault["kind"], fault["times"])
                Proxy.requests = Proxy.most_in_flight = 0
            return self.send(200, b"{}")
        if self.plain and self.path == "/tokenize":  # as vLLM has it; the tiny tokenizer has an id per character
            vocab = requests.get(f"{self.upstream}/v1/vocabulary", headers=self.key(), timeout=60).json()["vocab"]
            tokens = [vocab.get(character, vocab["?"]) for character in json.loads(body)["prompt"]]
            return self.send(200, json.dumps({"tokens": tokens}).encode())
        if self.path not in SCORING:
            return self.send(404, b'{"detail":"Not Found"}')
        with self.lock:
            Proxy.requests += 1
            Proxy.in_flight += 1
            Proxy.most_in_flight = max(Proxy.most_in_flight, Proxy.in_flight)
            kind, times = Proxy.fault
            Proxy.fault = (kind, times - 1)
        try:
            self.answer(body, kind if times > 0 else "")
        finally:
            with self.lock:
                Proxy.in_flight -= 1

    def answer(self, body: bytes, fault: str):
        if fault.startswith("HTTP "):
            return self.send(int(fault.removeprefix("HTTP ")), b'{"error": {"message": "injected"}}')
        if fault == "silence":
            time.sleep(3)
        if fault == "hang up":
            self.close_connection = True
            return None
        answer = requests.post(self.upstream + self.path, data=body, headers=self.key(), timeout=60)
        content = answer.content
        if fault == "not JSON":
            content = b"<html>bad gateway</html>"
        elif fault == "cut short":
            self.close_connection = True
            return self.send(200, content[: len(content) // 2], length=len(content))
        elif fault == "bytes too few":
            content = content[:-64]
        elif fault == "bytes of NaN":
            content = content[:-64] + b"\xff" * 64
        elif fault in JSON_FAULTS:
            content = json.dumps(JSON_FAULTS[fault](json.loads(content))).encode()
        if fault == "" and self.plain:
            time.sleep(0.02)  # long enough for requests to meet
        return self.send(answer.status_code, content)

    def key(self) -> dict[str, str]:
        return {name: self.headers[name] for name in ("Authorization",) if name in self.headers}

    def send(self, status: int, content: bytes, length: int | None = None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    Proxy.upstream, Proxy.plain = sys.argv[2], "--plain" in sys.argv
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Proxy).serve_forever()
