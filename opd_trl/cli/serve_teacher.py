"""`opd-trl serve-teacher`: one teacher behind HTTP, for students on other machines."""

import argparse
import importlib.util
import ipaddress
import json
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any


HELP = """\
usage: opd-trl serve-teacher --model PATH_OR_HUB_ID [--port N] [--host ADDRESS] [--FLAG VALUE ...]

Loads a causal language model once and scores token sequences over HTTP, with the code of a teacher in the training
process. Students on this machine or others train against it with one line in their recipe:

  teacher_server_url: http://127.0.0.1:8001

Examples
  # one GPU of a node for the teacher, the others for training on the same node
  CUDA_VISIBLE_DEVICES=7 opd-trl serve-teacher --model Qwen/Qwen3-8B
  # for students on other machines: a key is required, and read from the environment on both sides
  export OPD_TRL_API_KEY=$(openssl rand -hex 32)
  opd-trl serve-teacher --model Qwen/Qwen3-8B --host 0.0.0.0
  # a large teacher over all GPUs of the machine, in 4 bits (needs bitsandbytes)
  opd-trl serve-teacher --model Qwen/Qwen3-32B --device auto \\
      --model-init-kwargs '{"quantization_config": {"load_in_4bit": true}}'

The model
  --model PATH_OR_HUB_ID        a folder with a saved model and its tokenizer, or a model of the hub
  --revision NAME               branch, tag or commit of the hub
  --dtype TYPE                  auto (that of the checkpoint; default), bfloat16, float16, float32
  --device DEVICE               default: cuda where there is one, else cpu; auto spreads the model over all GPUs
  --max-length N                longest sequence in tokens; default: the model's context window
  --model-init-kwargs JSON      further arguments of from_pretrained; they win over the flags above
  --trust-remote-code           run code that comes with the model

The server
  --host ADDRESS                default 127.0.0.1: this machine alone. 0.0.0.0 is every machine that reaches this one
  --port N                      default 8001; 0 takes a free one
  --served-model-name NAME      default: what --model says
  --batch-size N                sequences in one forward; default 8
  --max-sequences N             sequences in one request; default 64
  --max-logprobs N              ids scored at a position, most probable ones and requested ones; default 100
  --max-request-mib N           size of a request; default 16
  --max-concurrent-requests N   requests at a time, waiting ones included; default 32

OPD_TRL_API_KEY, in the environment, is the key that every request but /health must carry. It is no flag: others on
the machine can read the flags of a process. The traffic is not encrypted: in a network that you do not trust, keep
127.0.0.1 and connect through `ssh -N -L 8001:127.0.0.1:8001 TEACHER_MACHINE`.

Endpoints: GET /health, /v1/models, /v1/vocabulary, /v1/head; POST /v1/hidden_states, and /v1/completions in the form
of vLLM's (prompt_logprobs; max_tokens 0 or 1: the server scores, it does not generate).

Exit status: 0 ended by SIGTERM or Ctrl-C, 2 bad input.
"""

NAME = "opd-trl serve-teacher"
API_KEY = "OPD_TRL_API_KEY"
SHUTDOWN_LIMIT = 10  # seconds for requests in flight to finish


class InputError(Exception):
    """What was asked for cannot be served; the message is one line."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}. `{self.prog} --help` explains the flags.\n")


def main(argv: list[str]) -> int:
    """Run `opd-trl serve-teacher` and return its exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    args = make_parser().parse_args(argv)
    key = os.environ.get(API_KEY, "").strip() or None
    try:
        check(args, key)
        with bind(args.host, args.port) as sock:
            serve(args, sock, key)
    except InputError as error:
        print(f"{NAME}: error: {error}", file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=NAME, add_help=False, allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name")
    parser.add_argument("--revision")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"))
    parser.add_argument("--device")
    parser.add_argument("--max-length", type=positive)
    parser.add_argument("--model-init-kwargs", type=json_object, default={})
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=port, default=8001)
    for flag, default in (
        ("batch-size", 8),
        ("max-sequences", 64),
        ("max-logprobs", 100),
        ("max-request-mib", 16),
        ("max-concurrent-requests", 32),
    ):
        parser.add_argument(f"--{flag}", type=positive, default=default)
    return parser


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def port(text: str) -> int:
    """A port, or 0 for a free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def json_object(text: str) -> dict[str, Any]:
    """Keyword arguments as JSON."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected JSON, got {text!r} ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'expected a JSON object such as {{"dtype": "auto"}}, got {text!r}')
    return value


def check(args: argparse.Namespace, key: str | None) -> None:
    """Refuse what can be refused before anything is loaded.

    Raises:
        InputError: a package, the folder of the model or the key is missing.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'{" and ".join(missing)} not installed. Install with: pip install "opd_trl[serve]"')
    from ..scripts.data import looks_local

    folder = Path(args.model).expanduser()
    if folder.exists() and not (folder / "config.json").is_file():
        merge = " Merge the adapter into its model first." if (folder / "adapter_config.json").is_file() else ""
        raise InputError(f"--model {args.model} holds no config.json: it is no folder of a saved model.{merge}")
    if looks_local(args.model) and not folder.exists():
        raise InputError(f"--model {args.model} does not exist (looked in {Path.cwd()}). Give a folder or a hub id.")
    if key is None and not is_loopback(args.host):
        raise InputError(
            f"--host {args.host} can be reached from other machines, and {API_KEY} is not set. Set it here and for "
            f"the students, e.g. `export {API_KEY}=$(openssl rand -hex 32)`, or keep --host 127.0.0.1."
        )


def resolve(host: str) -> list[tuple[Any, ...]]:
    """Addresses of a host."""
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} is no address of this machine ({error}). Give e.g. 127.0.0.1.") from None


def is_loopback(host: str) -> bool:
    """Do all addresses of a host stay on this machine?

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    return all(ipaddress.ip_address(entry[4][0].partition("%")[0]).is_loopback for entry in resolve(host))


def bind(host: str, number: int) -> socket.socket:
    """Take the port before the model is loaded."""
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

    from ..serving.app import Limits, build_app

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
    """Return the `Scorer` of the model; whatever the libraries object to is one line."""
    import torch
    from safetensors import SafetensorError

    from ..serving.scorer import load_scorer

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
        "key": f"asked for ({API_KEY})" if key else f"none: set {API_KEY} to ask for one",
        "recipe": f"teacher_server_url: {address}",
    }
    return "\n".join([f"Serving {name}", *(f"  {title:<12}{text}" for title, text in lines.items())])
