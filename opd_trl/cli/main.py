"""`opd-trl`: dispatch to the commands. Each is imported when it is called, so that `--help` costs nothing."""

import importlib
import os
import signal
import sys

import opd_trl

from ..durable import in_a_line
from ..screen import guarded_screen
from ..scripts.processes import signals_end
from ..spelling import did_you_mean


COMMANDS = {
    "opd": "train a student on its own text, scored by a separate teacher",
    "opsd": "train a student on its own text, scored by itself reading a privileged context",
    "init": "write a recipe, prompts and a rule to start from",
    "plan": "size a training run before it starts: what each GPU holds, and which setting to change",
    "preflight": "say before training what will fail: templates, teacher, coverage, loss, privileged context, cost",
    "verify-loss": "compare the gradient of the configured loss with the exact one, on your own models and prompts",
    "serve-teacher": "put a teacher behind HTTP, for students on other machines",
    "report": "one HTML page from the run logs: curves, warnings, samples token by token, cost; runs side by side",
    "chat": "ask a trained model beside the one that it was trained from, and its teacher",
    "eval": "measure a model: mathematics, rules, retention; with seeds and intervals",
    "data": "make data sets ready: adapters, splits, decontamination, teacher traces and their filter",
    "pipeline": "run stages (SFT, RLVR, OPD, evaluation) from one file, resumable",
    "methods": "list the published methods that `method:` sets, and what each one changes",
    "toy": "write a tiny model and its arithmetic task: what the smoke recipes train, no network",
    "recipes": "list, show or copy the recipes (YAML files) that come with the package",
    "reproduce": "the paper's failures and fixes on tiny models, with seeds and intervals",
    "demo": "the ten-minute CPU demo: a small model learns a system prompt",
    "env": "print the versions to put into a bug report",
}

# Those that keep what they have done and go on from it.
GO_ON = ("eval", "data", "pipeline", "reproduce")
KEPT = "What is done is kept; the same command goes on."

HELP = """\
usage: opd-trl COMMAND [ARGUMENTS]

On-policy distillation on top of Hugging Face TRL.

commands
{commands}

Start here:
  opd-trl demo                                       see it work, no GPU needed
  opd-trl recipes list                               what can be trained out of the box
  opd-trl toy                                        a tiny model: every recipe runs on it with --config smoke/opd
  opd-trl plan --config math/opd_qwen3_1.7b_from_8b  does it fit my GPUs?
  opd-trl opsd --config system_prompt/demo           train with a recipe, by name or by path
  opd-trl serve-teacher --model Qwen/Qwen3-8B        a teacher for students on other machines

`opd-trl COMMAND --help` explains a command; `opd-trl --version` prints the version.
"""


def main(argv: list[str] | None = None) -> int:
    """Run `opd-trl` with `argv` (those of the process by default) and return its exit status."""
    try:
        with guarded_screen():
            status = dispatch(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # who reads has read enough, as `| head` does: what is left goes nowhere, without a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def dispatch(argv: list[str]) -> int:
    """Run the command that `argv` names, behind the screen."""
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text(), end="")
        return 0
    if argv[0] == "--version":
        print(opd_trl.__version__)
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        print(f"opd-trl: error: {unknown_command(name)}", file=sys.stderr)
        return 2
    try:
        with signals_end():
            return run(name, rest)
    except KeyboardInterrupt as ended:
        again = KEPT if name in GO_ON else "The same command begins anew."
        print(f"\nopd-trl {name}: interrupted. {again}", file=sys.stderr)
        return 128 + getattr(ended, "number", signal.SIGINT)
    except Exception as error:
        if (line := in_a_line(error)) is None:
            raise
        print(f"opd-trl {name}: error: {line}{' ' + KEPT if name in GO_ON else ''}", file=sys.stderr)
        return 2


def run(name: str, rest: list[str]) -> int:
    """Import a command, call it with its arguments, and return its exit status."""
    if name in ("opd", "opsd"):
        return importlib.import_module("opd_trl.cli.training").main(name, rest)
    return importlib.import_module(f"opd_trl.cli.{name.replace('-', '_')}").main(rest) or 0


def help_text() -> str:
    """The overview that `opd-trl --help` prints."""
    width = max(map(len, COMMANDS))
    return HELP.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()))


def unknown_command(name: str) -> str:
    """Say that there is no such command, and which ones there are."""
    hint = did_you_mean(name, COMMANDS, otherwise=f"the commands are {', '.join(COMMANDS)}.")
    return f"unknown command {name!r}: {hint}"


if __name__ == "__main__":
    raise SystemExit(main())
