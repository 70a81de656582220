"""From the command line of a check to the trainer of its recipe, built in a folder that is thrown away."""

import argparse
import contextlib
import importlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import opd_trl

from . import common
from .quiet import quiet_libraries
from .recipe_command import Flags, check_misplaced, make_parser, peek, training_command


# What a check changes of a recipe: nothing is trained, tracked or kept, and one process generates for itself.
OVERRIDES = ("--report_to", "none", "--eval_strategy", "no", "--save_strategy", "no", "--use_vllm", "false")
OVERRIDES += ("--push_to_hub", "false", "--resume_from_checkpoint", "false")
# Flags that all checks have.
SHARED_FLAGS: Flags = {"prompts": {"type": int}, "json": {"type": Path}}


@dataclass(frozen=True)
class Subject:
    """The training run that a check looks at, as its command line describes it.

    Attributes:
        command: `opd` or `opsd`.
        parsed: arguments of the script, the training, the model and the data.
        own: the flags of the check.
    """

    command: str
    parsed: tuple[Any, ...]
    own: argparse.Namespace

    @property
    def training(self) -> Any:
        """The configuration of the training, an OPDConfig or OPSDConfig."""
        return self.parsed[1]

    @property
    def student(self) -> str:
        """Path or hub id of the student."""
        return self.parsed[2].model_name_or_path


def read_subject(argv: list[str], own: Flags, *, prog: str, defaults: dict[str, Any]) -> Subject:
    """Parse the command line of a check: a recipe, fields of it, and flags of the check.

    `own` are its flags besides `SHARED_FLAGS`, `defaults` their defaults, and `prog` is the command as errors call it;
    flags of `accelerate launch` are read and not used. Raises ValueError where what is given cannot be trained, or a
    flag of the check is out of range.
    """
    own = SHARED_FLAGS | own
    recipe = peek(argv)
    command = training_command(recipe)
    check_misplaced(recipe, own, prog=prog)
    parser = make_parser(command, own, prog=prog)
    parser.set_defaults(**defaults)
    with quiet_libraries():
        *parsed, flags, _ = parser.parse_args_and_config([*argv, *OVERRIDES], return_remaining_strings=True)
    if flags.prompts < 1:
        raise ValueError(f"--prompts must be >= 1, got {flags.prompts}.")
    if flags.json is not None and not flags.json.parent.is_dir():
        raise ValueError(f"--json {flags.json}: there is no folder {flags.json.parent}. Make it first.")
    importlib.import_module(f"opd_trl.scripts.{command}").check_arguments(*parsed)
    return Subject(command, tuple(parsed), flags)


@contextlib.contextmanager
def build(subject: Subject, **options: Any) -> Iterator[Any]:
    """The trainer of a recipe, in this process alone; `options` are further arguments of it.

    Raises ValueError for what OPDTrainer refuses, DataError for a data set that cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        subject.training.output_dir = folder
        trainer_class = getattr(opd_trl, {"opd": "OPDTrainer", "opsd": "OPSDTrainer"}[subject.command])
        yield common.build_trainer(trainer_class, *subject.parsed, **options)
