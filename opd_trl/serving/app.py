"""The HTTP face of a `Scorer`: routes, limits, errors; and serving it until a signal."""

import argparse
import ipaddress
import json
import logging
import os
import socket
import sys
from functools import partial
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from safetensors import SafetensorError
from starlette.exceptions import HTTPException

from ..credentials import API_KEY_VARIABLE
from ..teachers import OURS
from .bodies import Refusal
from .gate import Gate
from .http_limits import Connection, backlog, limit_log, most_connections
from .scorer import Scorer, load_scorer
from .service import Limits, Service
from .start import InputError


logger = logging.getLogger(__name__)
SHUTDOWN_LIMIT = 10  # seconds for requests in flight to finish
# Tokens of a forward by default. On a CPU, rows of 256 tokens took 12 % longer with 4096 than with 1024.
TOKENS, CPU_TOKENS = 4096, 1024
CONNECTIONS = 8  # that may be open for each request at a time


def build_app(scorer: Scorer, *, name: str, limits: Limits, api_key: str | None) -> FastAPI:
    """Build the application that uvicorn serves: the routes of a teacher, behind the gate.

    `name` is that under which the model is served; `api_key` what every request but `/health` must carry; None asks
    for none.
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
        return await service.whole(vocabulary)

    app.add_route("/v1/head", service.head, methods=["GET"])
    app.add_route("/v1/hidden_states", service.hidden_states, methods=["POST"])
    app.add_route("/v1/completions", service.completions, methods=["POST"])
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
        batch_tokens=args.batch_tokens or (CPU_TOKENS if scorer.head.weight.is_cpu else TOKENS),
        max_sequences=args.max_sequences,
        max_log_probs=args.max_logprobs,
        max_concurrent_requests=args.max_concurrent_requests,
        max_request_mib=args.max_request_mib,
    )
    app = build_app(scorer, name=name, limits=limits, api_key=key)
    print(summary(name, scorer, url(args.host, sock), key), flush=True)
    config = uvicorn.Config(
        app,
        http=partial(Connection, most=most_connections(CONNECTIONS * limits.max_concurrent_requests)),
        ws="none",
        lifespan="off",
        log_level="warning",
        backlog=backlog(),
        timeout_keep_alive=120,
        timeout_graceful_shutdown=SHUTDOWN_LIMIT,
        proxy_headers=False,
        server_header=False,
    )
    limit_log()
    try:
        uvicorn.Server(config).run(sockets=[sock])
    except SystemExit:  # the signal, after the shutdown; a forward that is still under way is not waited for
        sys.stdout.flush()
        os._exit(0)


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
