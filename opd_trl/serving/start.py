"""Start the server: check what is asked for, load the model, bind, serve until a signal."""

import argparse
import importlib.util
import ipaddress
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from .. import API_KEY_VARIABLE


SHUTDOWN_LIMIT = 10  # seconds for requests in flight to finish


class InputError(Exception):
    """What was asked for cannot be served; the message is one line."""


def check(args: argparse.Namespace, key: str | None) -> None:
    """Raise InputError where a package, the folder of the model or the key is missing, before anything is loaded."""
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'{" and ".join(missing)} not installed. Install with: pip install "opd_trl[serve]"')
    from ..data.files import looks_local

    folder = Path(args.model).expanduser()
    if folder.exists() and not (folder / "config.json").is_file():
        merge = " Merge the adapter into its model first." if (folder / "adapter_config.json").is_file() else ""
        raise InputError(f"--model {args.model} holds no config.json: it is not the folder of a saved model.{merge}")
    if looks_local(args.model) and not folder.exists():
        raise InputError(f"--model {args.model} does not exist (looked in {Path.cwd()}). Give a folder or a hub id.")
    if key is None and not is_loopback(args.host):
        raise InputError(
            f"--host {args.host} can be reached from other machines, and {API_KEY_VARIABLE} is not set. Set it here "
            f"and for the students, e.g. `export {API_KEY_VARIABLE}=$(openssl rand -hex 32)`, or "
            "keep --host 127.0.0.1."
        )


def resolve(host: str) -> list[tuple[Any, ...]]:
    """The addresses of a host, as `socket.getaddrinfo` gives them; raises InputError where there are none."""
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} is not an address of this machine ({error}). Give e.g. 127.0.0.1.") from None


def is_loopback(host: str) -> bool:
    """Do all addresses of a host stay on this machine?

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    return all(ipaddress.ip_address(entry[4][0].partition("%")[0]).is_loopback for entry in resolve(host))


def bind(host: str, number: int) -> socket.socket:
    """A socket that holds the port before the model is loaded; raises InputError where the port cannot be had."""
    family, _, _, _, address = resolve(host)[0]
    # With the protocol named, asyncio sends small packets at once; without it every answer waits 40 ms for an ACK.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address[0], number, *address[2:]))
    except OSError as error:
        sock.close()
        raise InputError(f"port {number} of {host} cannot be used ({error.strerror}). Give another --port.") from None
    return sock


def serve(args: argparse.Namespace, sock: socket.socket, key: str | None) -> None:
    """Load the model, say what is served, and serve it until a signal."""
    for number in (signal.SIGTERM, signal.SIGINT):  # while loading; uvicorn repeats them after its own shutdown
        signal.signal(number, lambda *_: sys.exit(0))
    import uvicorn

    from .app import Limits, build_app

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


def load(args: argparse.Namespace) -> Any:
    """Return the `Scorer` of the model; what the libraries object to becomes an InputError of one line."""
    import torch
    from safetensors import SafetensorError

    from .scorer import load_scorer

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


def summary(name: str, scorer: Any, address: str, key: str | None) -> str:
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
