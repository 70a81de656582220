"""`opd-trl serve-teacher`: one teacher behind HTTP, for students on other machines."""

import argparse

from ..credentials import api_key
from ..serving.start import InputError, bind, check, end_on_signals
from .terminal import json_object, refused


DESCRIPTION = """\
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
"""

EPILOG = """\
OPD_TRL_API_KEY, in the environment, is the key that every request but /health must carry. It is not a flag: others on
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
        make_parser().print_help()
        return 0
    args = make_parser().parse_args(argv)
    try:
        key = api_key()
    except ValueError as error:
        return refused(NAME, error)
    try:
        check(args, key)
        with bind(args.host, args.port) as sock:
            end_on_signals()
            from ..serving.app import serve

            serve(args, sock, key)
    except InputError as error:
        return refused(NAME, error)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of `opd-trl serve-teacher`."""
    parser = Parser(
        NAME,
        usage=f"{NAME} --model PATH_OR_HUB_ID [--port N] [--host ADDRESS] [--FLAG VALUE ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument_group("The model").add_argument
    a_model = "a folder with a saved model or a LoRA adapter, or a model of the hub"
    add("--model", required=True, metavar="PATH_OR_HUB_ID", help=a_model)
    add("--revision", metavar="NAME", help="branch, tag or commit of the hub")
    dtypes = ("auto", "bfloat16", "float16", "float32")
    a_dtype = "auto (that of the checkpoint; default), bfloat16, float16, float32"
    add("--dtype", default="auto", choices=dtypes, metavar="TYPE", help=a_dtype)
    a_device = "default: cuda where there is one, else cpu; auto spreads the model over all GPUs"
    add("--device", metavar="DEVICE", help=a_device)
    a_length = "longest sequence in tokens; default: the model's context window"
    add("--max-length", type=positive, metavar="N", help=a_length)
    more = "further arguments of from_pretrained; they win over the flags above"
    add("--model-init-kwargs", type=json_object, default={}, metavar="JSON", help=more)
    add("--trust-remote-code", action="store_true", help="run code that comes with the model")

    add = parser.add_argument_group("The server").add_argument
    a_host = "default 127.0.0.1: this machine alone. 0.0.0.0 is every machine that reaches this one"
    add("--host", default="127.0.0.1", metavar="ADDRESS", help=a_host)
    add("--port", type=port, default=8001, metavar="N", help="default 8001; 0 takes a free one")
    add("--served-model-name", metavar="NAME", help="default: what --model says")
    tokens = "tokens in one forward, padding included; a longer sequence is alone; default 4096, on a CPU 1024"
    add("--batch-tokens", type=positive, metavar="N", help=tokens)
    for flag, default, what in (
        ("--batch-size", 64, "sequences in one forward, those of several requests together"),
        ("--max-sequences", 64, "sequences in one request"),
        ("--max-logprobs", 100, "ids scored at a position, most probable ones and requested ones"),
        ("--max-request-mib", 16, "size of a request"),
        ("--max-concurrent-requests", 32, "requests at a time, waiting ones included"),
    ):
        add(flag, type=positive, default=default, metavar="N", help=f"{what}; default {default}")
    return parser


def positive(text: str) -> int:
    """Read a whole number from 1 on; raises ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def port(text: str) -> int:
    """Read a port, or 0 for a free one; raises ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)
