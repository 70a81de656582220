"""A FAKE of SGLang's border: what its source (0.5.23) says that `/generate` answers, over a tiny model."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class FakeSGLang(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    #: Longest part of a prompt that is read at a time: the states of the last part alone are kept.
    chunk: int
    #: Are the states those before the final norm, as of some models?
    before_norm: bool
    #: Was it started with --enable-return-hidden-states?
    sends_states: bool

    def log_message(self, *args):
        pass

    def do_GET(self):
        card = {"id": "teacher", "object": "model", "owned_by": "sglang", "max_model_len": 512}
        self.answer({"object": "list", "data": [card]} if self.path == "/v1/models" else None)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self.answer({"tokens": self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]})
        if self.path != "/generate":
            return self.answer(None)
        if not self.sends_states:
            said = "The server is not configured to return hidden states. Please set ..."
            return self.answer({"error": {"message": said}}, 400)
        asked = zip(body["input_ids"], body["logprob_start_len"], strict=True)
        return self.answer([{"text": "", "meta_info": self.meta_info(ids, start, body)} for ids, start in asked])

    @torch.no_grad()
    def meta_info(self, ids: list[int], start: int, body: dict) -> dict:
        states = self.model.model(torch.tensor([ids])).last_hidden_state[0]
        log_probs = self.model.lm_head(states).log_softmax(-1)
        own = [None, *log_probs[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()]
        cached = self.cached(ids, start if body["return_logprob"] else len(ids))
        if self.before_norm:
            states = states / self.model.model.norm.weight * 5
        rows = states[cached:][(len(ids) - cached - 1) // self.chunk * self.chunk :].tolist()
        found = [rows] if body["sampling_params"]["max_new_tokens"] else []
        entries = [[None if at == start else own[at], ids[at], None] for at in range(start, len(ids))]
        return {"prompt_tokens": len(ids), "input_token_logprobs": entries, "hidden_states": found}

    def cached(self, ids: list[int], most: int) -> int:
        """How many tokens of a prompt the prefix cache holds, which is as good as never told."""
        seen = self.server.seen
        most, longest = min(most, len(ids) - 1), 0
        for other in seen:
            same = next((i for i, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1]), len(other))
            longest = max(longest, min(same, len(ids)))
        seen.append(ids)
        return min(most, longest)

    def answer(self, body: object, status: int = 200):
        content = json.dumps(body).encode()
        self.send_response(404 if body is None else status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def fake_sglang(model, tokenizer, *, chunk=1 << 20, before_norm=False, sends_states=True) -> Iterator[str]:
    """Yield the URL of the fake."""
    habits = {"chunk": chunk, "before_norm": before_norm, "sends_states": sends_states}
    kind = type("Kind", (FakeSGLang,), {"model": model.eval(), "tokenizer": tokenizer, **habits})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads, server.seen = True, []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
