"""`opd-trl serve-teacher`: one teacher behind HTTP, for students on other machines."""

import argparse
import os
import sys

from .. import API_KEY_VARIABLE
from ..serving.start import InputError, bind, check, serve
from .flags import json_object


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
    key = os.environ.get(API_KEY_VARIABLE, "").strip() or None
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
