"""A STAND-IN for vLLM's pooling runner, which needs an environment of its own: its wire format, and faults in it.

The hidden states are those of a real `opd-trl serve-teacher`. `tests/vllm` has the same against a real vLLM 0.32.0.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import requests
import torch
from safetensors.torch import load


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Answer:
    """Hidden states of all tokens of each sequence, and what the header says of them."""

    def __init__(self, states: list[torch.Tensor], model: str, dtype: str):
        self.states, self.dtype = states, dtype
        self.described = {"model": model, "data": []}
        end = 0
        for index, rows in enumerate(states):
            start, end = end, end + rows.numel() * DTYPES[dtype].itemsize
            place = {"index": index, "start": start, "end": end, "shape": list(rows.shape)}
            self.described["data"].append({"embed_dtype": dtype, "endianness": "little"} | place)

    @property
    def content(self) -> bytes:
        whole = torch.cat([rows.flatten() for rows in self.states]).to(DTYPES[self.dtype])
        return whole.view(torch.uint8).numpy().astype(np.uint8).tobytes()

    def again(self, states: list[torch.Tensor]) -> "Answer":
        return Answer(states, self.described["model"], self.dtype)


def described(**change) -> Callable[[Answer], Answer]:
    """A fault in the header: entries of the last sequence, or of all where they are not its own."""

    def fault(answer: Answer) -> Answer:
        last = answer.described["data"][-1]
        for name, value in change.items():
            (last if name in last else answer.described)[name] = value
        return answer

    return fault


def with_nan(rows: torch.Tensor) -> torch.Tensor:
    rows[-2] = torch.nan
    return rows


#: Of the server as a whole: every answer is so.
HABITS: dict[str, Callable[[Answer], Answer]] = {
    "normalises": lambda answer: answer.again([x / x.norm(dim=-1, keepdim=True) for x in answer.states]),
    "leaves the norm out": lambda answer: answer.again([x * (2 + torch.rand(len(x), 1)) for x in answer.states]),
    "truncates": lambda answer: answer.again([x[:-1] for x in answer.states]),
    "cuts off dimensions": lambda answer: answer.again([x[:, :32] for x in answer.states]),
    "shuffles": lambda answer: answer.again([x.flip(0) for x in answer.states]),
}
#: Of one answer that must not reach a loss.
FAULTS: dict[str, Callable[[Answer], Answer]] = {
    "a sequence too few": lambda answer: answer.again(answer.states[:-1]),
    "a sequence too many": lambda answer: answer.again(answer.states + answer.states[:1]),
    "a token too few": lambda answer: answer.again([*answer.states[:-1], answer.states[-1][1:]]),
    "a token too many": lambda answer: answer.again([*answer.states[:-1], answer.states[-1].repeat(2, 1)]),
    "NaN": lambda answer: answer.again([*answer.states[:-1], with_nan(answer.states[-1])]),
    "another model": described(model="another"),
    "another dtype": described(embed_dtype="fp8_e4m3"),
    "another byte order": described(endianness="big"),
    "another place": described(start=0),
    "an index twice": described(index=0),
    "no shape": described(shape=None),
    "no list": described(data={"0": 1}),
}


class Pooling(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        models = requests.get(self.server.upstream + self.path, timeout=60).json()
        for model in models["data"]:
            model["owned_by"] = "vllm"
        self.answer(json.dumps(models).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize" and self.server.tokenizer is not None:
            ids = self.server.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
            return self.answer(json.dumps({"tokens": ids}).encode())
        if self.path == "/tokenize":  # the tiny tokenizer has an id per character
            vocab = requests.get(f"{self.server.upstream}/v1/vocabulary", timeout=60).json()["vocab"]
            return self.answer(json.dumps({"tokens": [vocab.get(x, vocab["?"]) for x in body["prompt"]]}).encode())
        if self.path != "/pooling":
            return self.answer(b'{"detail":"Not Found"}', 404)
        if self.server.refusal:
            return self.answer(json.dumps({"error": {"message": self.server.refusal}}).encode(), 400)
        if self.server.hang_up:
            self.server.hang_up -= 1
            self.close_connection = True
            return None
        self.server.asked.append(body)
        lengths = list(map(len, body["input"]))
        asked = {"sequences": [[*ids, 0] for ids in body["input"]], "num_scored": lengths}
        found = requests.post(f"{self.server.upstream}/v1/hidden_states", json=asked, timeout=60)
        states = load(found.content)["hidden_states"].float().split(lengths)
        habit = self.server.habit if body["use_activation"] is False else HABITS["normalises"]
        answer = habit(Answer(list(states), body["model"], body["embed_dtype"]))
        if self.server.faults:
            answer = self.server.faults.pop()(answer)
        header = json.dumps(answer.described)
        self.answer(answer.content[: self.server.bytes_kept], metadata=header)

    def answer(self, content: bytes, status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def pooling_stand_in(upstream: str, habit: str | None = None) -> Iterator[ThreadingHTTPServer]:
    """Yield the stand-in before a real `opd-trl serve-teacher`.

    Its `url` is where it listens, `asked` what it was sent, `faults` are of the next answers, `refusal` is what
    it says with status 400, `bytes_kept` cuts every answer, `hang_up` is how many requests get none, `tokenizer` reads
    texts (None: the tiny one).
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pooling)
    server.daemon_threads, server.upstream, server.asked, server.faults = True, upstream, [], []
    server.refusal, server.bytes_kept, server.hang_up, server.tokenizer = "", None, 0, None
    server.habit = HABITS.get(habit, lambda answer: answer)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
