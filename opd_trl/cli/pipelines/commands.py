"""The commands that a stage may run: those of TRL, ours, and a script of the user's own."""

import importlib
import shlex
import sys
from argparse import ArgumentParser, _SubParsersAction
from dataclasses import dataclass
from pathlib import Path

from ...spelling import did_you_mean
from ..main import COMMANDS


TRL = ("distillation", "dpo", "grpo", "kto", "reward", "rloo", "sft")
OUR_TRAINING = ("opd", "opsd")
# Our commands that cannot be a stage of a pipeline.
NO_STAGES = ("pipeline", "serve-teacher", "recipes", "env", "methods", "plan", "preflight", "verify-loss")
# Ours that go on from what an attempt that was ended has written; another's leftovers are moved aside.
GO_ON = ("eval", "data traces")
# Ours whose --output is a folder of their own.
WRITE_FOLDER = ("demo", "eval", "toy")


@dataclass(frozen=True)
class Command:
    """A command that a stage can run, without its arguments.

    Args:
        name: as in the pipeline's file, e.g. `trl sft`.
        argv: how its process is started: modules of this environment, whatever comes first on PATH.
        training: is it launched by accelerate, with recipes and checkpoints?
        goes_on: does it go on from what an attempt that was ended has written?
        output_key: the argument that names its output folder, set by the pipeline where the file does not; or None.
        files: files that it consists of.
    """

    name: str
    argv: tuple[str, ...]
    training: bool = False
    goes_on: bool = False
    output_key: str | None = None
    files: tuple[str, ...] = ()

    @property
    def writes_rows(self) -> bool:
        """Is it of `opd-trl data`, which writes files beside its `--output`?"""
        return self.name.startswith("opd-trl data ")

    @property
    def script(self) -> bool:
        """Is it a script of the user's, whose arguments are not known?"""
        return bool(self.files)


def find_command(run: str, folder: Path) -> Command:
    """Return the command that `run` means, such as `trl sft` or `opd-trl data filter`; raises ValueError for others.

    The script of `python SCRIPT` is looked for in `folder`.
    """
    words = shlex.split(run)
    program, rest = (words or [""])[0], words[1:]
    if program == "trl" and len(rest) == 1 and rest[0] in TRL:
        return Command(run, (sys.executable, "-m", "trl.cli.main", *rest), True, True, "output_dir")
    if program == "opd-trl" and rest and rest[0] in COMMANDS and rest[0] not in NO_STAGES:
        name = " ".join(rest)
        training = name in OUR_TRAINING
        output_key = "output_dir" if training else "output" if name in WRITE_FOLDER else None
        argv = (sys.executable, "-m", "opd_trl.cli.main", *rest)
        return Command(f"opd-trl {name}", argv, training, training or name in GO_ON, output_key)
    if program == "python" and rest:
        if not (folder / rest[0]).is_file():
            raise ValueError(f"run: {run}: no file {rest[0]} (looked in {folder.resolve()}).")
        return Command(run, (sys.executable, *rest), files=(rest[0],))
    known = [*(f"trl {name}" for name in TRL), *(f"opd-trl {name}" for name in COMMANDS if name not in NO_STAGES)]
    hint = did_you_mean(run, known, otherwise="nothing is spelt like it.")
    raise ValueError(
        f"run: {run} is not a command of a stage: {hint} There are {', '.join(known)} and `python SCRIPT`."
    )


def parser_of(command: Command) -> ArgumentParser:
    """Return the parser of a command that is not a script; raises ValueError for an unknown subcommand."""
    program, name, *rest = command.name.split()
    if program == "trl":
        return importlib.import_module(f"trl.scripts.{name}").make_parser(prog=command.name)
    if command.training:
        return importlib.import_module(f"opd_trl.scripts.{name}").make_parser(prog=command.name)
    parser = importlib.import_module(f"opd_trl.cli.{name.replace('-', '_')}").make_parser()
    for word in rest:
        choices = next((action.choices for action in parser._actions if isinstance(action, _SubParsersAction)), {})
        if word not in choices:
            raise ValueError(f"`{program} {name}` has no `{word}`. It has {', '.join(choices) or 'no subcommands'}.")
        parser = choices[word]
    return parser
