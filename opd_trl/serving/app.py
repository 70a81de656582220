"""The HTTP face of a `Scorer`: routes, limits, errors; and serving it until a signal."""

import argparse
import asyncio
import ipaddress
import json
import logging
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from safetensors import SafetensorError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..credentials import API_KEY_VARIABLE
from ..teachers import OURS
from .answers import PIECE, CompletionsAnswer, pieces, tensor_bytes
from .bodies import (
    CompletionsBody,
    HiddenStatesBody,
    Refusal,
    as_prompts,
    check_completions,
    check_model,
    check_num_scored,
    check_requested,
    check_sequences,
    parse,
)
from .gate import Gate
from .scorer import NonFiniteScores, PromptScores, Scorer, load_scorer
from .start import InputError


logger = logging.getLogger(__name__)
SHUTDOWN_LIMIT = 10  # seconds for requests in flight to finish


@dataclass(frozen=True)
class Limits:
    """How much at a time: sequences per forward, and what a request and all of them together may ask."""

    batch_size: int
    max_sequences: int
    max_log_probs: int
    max_concurrent_requests: int
    max_request_mib: int


class LargeFile(FileResponse):
    """A file read in larger parts than web pages need."""

    chunk_size = PIECE


class Service:
    """What the routes do: check, score one forward at a time, answer. `name` is that under which a model is served."""

    def __init__(self, scorer: Scorer, name: str, limits: Limits):
        self.scorer, self.name, self.limits = scorer, name, limits
        self.num_ids = scorer.num_ids
        self.max_log_probs = min(limits.max_log_probs, self.num_ids)
        self.one_at_a_time = asyncio.Lock()
        self.check_sequences = partial(
            check_sequences,
            num_ids=self.num_ids,
            max_length=scorer.max_length,
            max_sequences=limits.max_sequences,
        )

    async def hidden_states(self, request: Request) -> Response:
        """POST /v1/hidden_states: safetensors with the states that predict the last tokens of each sequence."""
        sequences, num_scored = await run_in_threadpool(self.read_hidden_states, await request.body())

        def score(rows: list[int]) -> list[torch.Tensor]:
            parts = self.scorer.hidden_states([sequences[i] for i in rows], [num_scored[i] for i in rows])
            return [part.cpu() for part in parts]

        hidden_states = await self.in_batches(request, "sequences", sequences, score)
        content = await run_in_threadpool(tensor_bytes, hidden_states, self.name)
        headers = {"content-length": str(len(content))}
        return StreamingResponse(pieces(content), media_type="application/octet-stream", headers=headers)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions: log-probabilities of each token of the prompts, as JSON in the form of vLLM's."""
        body, prompts, top_k = await run_in_threadpool(self.read_completions, await request.body())
        requested = body.prompt_logprob_ids

        def score(rows: list[int]) -> list[PromptScores]:
            return self.scorer.prompt_scores(
                [prompts[i] for i in rows],
                top_k=top_k,
                requested=None if requested is None else [requested[i] for i in rows],
                temperature=body.temperature,
            )

        scores = await self.in_batches(request, "prompt", prompts, score)
        answer = CompletionsAnswer(self.name, prompts, scores, self.scorer.tokenizer)
        return StreamingResponse(iter(answer), media_type="application/json")

    def read_hidden_states(self, content: bytes) -> tuple[list[list[int]], list[int]]:
        """The checked sequences, and how many of the last tokens of each are scored."""
        body = parse(HiddenStatesBody, content)
        check_model(body.model, self.name)
        self.check_sequences("sequences", body.sequences)
        check_num_scored(body.num_scored, body.sequences)
        return body.sequences, body.num_scored

    def read_completions(self, content: bytes) -> tuple[CompletionsBody, list[list[int]], int]:
        """The checked body, its prompts as token ids, and K, how many of the most probable ids are scored."""
        body = parse(CompletionsBody, content)
        check_model(body.model, self.name)
        top_k = check_completions(body, self.max_log_probs)
        encode = self.scorer.tokenizer.encode
        prompts = [encode(prompt) if isinstance(prompt, str) else prompt for prompt in as_prompts(body.prompt)]
        self.check_sequences("prompt", prompts)
        check_requested(body.prompt_logprob_ids, prompts, num_ids=self.num_ids, max_log_probs=self.max_log_probs)
        return body, prompts, top_k

    async def in_batches(
        self, request: Request, field: str, sequences: Sequence[Sequence[int]], score: Callable[[list[int]], list[Any]]
    ) -> list[Any]:
        """Score sequences of about equal length together, the longest first; the results are in the given order.

        Nothing is scored for a client that has gone: one that ran into its time limit asks again.
        """
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        results: list[Any] = [None] * len(sequences)
        try:
            async with self.one_at_a_time:
                for start in range(0, len(order), self.limits.batch_size):
                    rows = order[start : start + self.limits.batch_size]
                    if await request.is_disconnected():
                        raise Refusal(499, "the client went away.")
                    for i, result in zip(rows, await run_in_threadpool(score, rows), strict=True):
                        results[i] = result
        except NonFiniteScores as error:
            raise Refusal(
                500,
                f"the scores of {field}[{rows[error.index]}] hold NaN or infinity. Start the server with --dtype "
                "bfloat16 or float32 (float16 overflows with some models), and check the checkpoint.",
            ) from None
        except torch.OutOfMemoryError:
            raise Refusal(
                500,
                f"out of memory with {len(rows)} sequences of up to {len(sequences[rows[0]])} tokens in one forward. "
                "Start the server with a smaller --batch-size or --max-length.",
            ) from None
        except asyncio.CancelledError:  # by uvicorn, which waits for so long after a signal and no longer
            raise Refusal(503, "the server is ending. Try again when it is back.", retry_after="10") from None
        return results


def build_app(scorer: Scorer, *, name: str, head_file: Path, limits: Limits, api_key: str | None) -> FastAPI:
    """Build the application that uvicorn serves: the routes of a teacher, behind the gate.

    `name` is that under which the model is served, `head_file` what `Scorer.save_head` wrote, and `api_key` what every
    request but `/health` must carry; None asks for none.
    """
    service = Service(scorer, name, limits)
    app = FastAPI(title="opd_trl teacher", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(
        Gate, api_key=api_key, max_concurrent=limits.max_concurrent_requests, max_bytes=limits.max_request_mib * 2**20
    )
    add_errors(app)
    vocabulary = json.dumps({"vocab": scorer.tokenizer.get_vocab()}).encode()
    model = {"id": name, "object": "model", "owned_by": OURS, "max_model_len": scorer.max_length}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/vocabulary")
    async def vocab() -> Response:
        return Response(vocabulary, media_type="application/json")

    @app.get("/v1/head")
    async def head() -> Response:
        return LargeFile(head_file, media_type="application/octet-stream")

    app.add_api_route("/v1/hidden_states", service.hidden_states, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", service.completions, methods=["POST"], response_model=None)
    return app


def add_errors(app: FastAPI) -> None:
    """Answer every error in the shape of OpenAI's: a refusal, an unknown path, a fault of the server itself."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        if refusal.status == 500:
            logger.error(refusal.message)
        return refusal.response()

    @app.exception_handler(HTTPException)
    async def not_served(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}. This server has GET /health, /v1/models, "
        message += "/v1/vocabulary and /v1/head, POST /v1/hidden_states and /v1/completions."
        return Refusal(error.status_code, message).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return Refusal(500, f"{type(error).__name__} in the server. Its log has the details.").response()


def serve(args: argparse.Namespace, sock: socket.socket, key: str | None) -> None:
    """Load the model, say what is served, and serve it until a signal."""
    scorer = load(args)
    name = args.served_model_name or args.model
    limits = Limits(
        batch_size=args.batch_size,
        max_sequences=args.max_sequences,
        max_log_probs=args.max_logprobs,
        max_concurrent_requests=args.max_concurrent_requests,
        max_request_mib=args.max_request_mib,
    )
    with tempfile.TemporaryDirectory(prefix="opd-trl-") as folder:
        head_file = Path(folder) / "head.safetensors"
        scorer.save_head(head_file, {"model": name})
        app = build_app(scorer, name=name, head_file=head_file, limits=limits, api_key=key)
        print(summary(name, scorer, url(args.host, sock), key), flush=True)
        config = uvicorn.Config(
            app,
            log_level="warning",
            timeout_keep_alive=120,
            timeout_graceful_shutdown=SHUTDOWN_LIMIT,
            proxy_headers=False,
            server_header=False,
        )
        uvicorn.Server(config).run(sockets=[sock])


def load(args: argparse.Namespace) -> Scorer:
    """Load the model; what the libraries object to becomes an InputError of one line."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return load_scorer(
            args.model,
            device=device,
            dtype=args.dtype,
            revision=args.revision,
            trust_remote_code=args.trust_remote_code,
            max_length=args.max_length,
            model_init_kwargs=args.model_init_kwargs,
        )
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, AssertionError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot serve {args.model} on {device}: {reason}") from None


def url(host: str, sock: socket.socket) -> str:
    """Where students find the server: an address that listens everywhere is given as this machine's name."""
    if ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_unspecified:
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"


def summary(name: str, scorer: Scorer, address: str, key: str | None) -> str:
    """What is served, where, and the line for the recipe."""
    weight = scorer.head.weight
    lines = {
        "address": address,
        "vocabulary": f"{len(scorer.tokenizer)} tokens, a head of {scorer.num_ids} rows",
        "context": f"{scorer.max_length} tokens",
        "dtype": str(scorer.model.dtype).removeprefix("torch."),
        "device": str(weight.device),
        "key": f"asked for ({API_KEY_VARIABLE})" if key else f"none: set {API_KEY_VARIABLE} to ask for one",
        "recipe": f"teacher_server_url: {address}",
    }
    return "\n".join([f"Serving {name}", *(f"  {title:<12}{text}" for title, text in lines.items())])
