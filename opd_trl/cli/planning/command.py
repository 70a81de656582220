"""From the command line of `opd-trl plan` to its figures."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from ...trainers.config_checks import SEPARATE_TEACHERS, is_url
from ..launching import launch_arguments
from ..recipes import find_recipe, read_recipe
from .engine import read_engine
from .inputs import read_workload
from .report import size


# The flags that `opd-trl plan` adds to those of the training commands.
OWN_FLAGS = {
    "gpus": {"type": int},
    "gpu_memory": {"type": float, "default": 80.0},
    "prompt_length": {"type": int, "default": 512},
    "student_config": {},
    "teacher_config": {"nargs": "+"},
    "json": {"type": Path},
}


def plan(argv: list[str]) -> tuple[dict[str, Any], Path | None]:
    """Parse a command line and size its run; return the figures and the file to write them to.

    Raises:
        ValueError: what is given cannot be sized.
    """
    recipe = peek(argv)
    parser = make_parser("opd" if any(recipe.get(name) for name in SEPARATE_TEACHERS) else "opsd")
    misplaced = [key for key in recipe if key in OWN_FLAGS]
    if misplaced:
        raise ValueError(f"{misplaced[0]} is no key of a recipe. Give it as a flag of `opd-trl plan`.")
    # --use_cpu: without a GPU transformers refuses bf16, and a plan is often made where there is none.
    _, training, model_args, _, own, launch_flags = parser.parse_args_and_config(
        [*argv, "--use_cpu"], return_remaining_strings=True
    )
    check_own(own)
    on_cpu = str(recipe.get("use_cpu", False)).lower() in ("true", "yes", "1")
    engine, engines = read_engine(launch_arguments(launch_flags, "script"), gpus=own.gpus, on_cpu=on_cpu)
    served = [is_url(teacher) for teacher in (training.teachers or {}).values()]
    if training.teacher_offload is not None and engine.stage == 3 and not (served and all(served)):
        raise ValueError(
            f"teacher_offload={training.teacher_offload!r} moves a whole teacher, and {engine.title} shards it. Leave "
            "it out, or take ZeRO-2 or DDP."
        )
    if "generation_batch_size" in recipe:  # of all GPUs
        of_one_micro_batch = training.per_device_train_batch_size * engine.gpus
        training.steps_per_generation = max(1, training.generation_batch_size // of_one_micro_batch)
    return size(read_workload(training, model_args, own, on_cpu=on_cpu), engine, engines), own.json


def peek(argv: list[str]) -> dict[str, Any]:
    """Return the recipe and those flags that decide how it is parsed: is there a separate teacher, is there a GPU?

    What is wrong with the recipe is left to the parser.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", *SEPARATE_TEACHERS, "use_cpu", "generation_batch_size"):
        parser.add_argument(*spellings(name), nargs="?", const="true")
    flags = {name: value for name, value in vars(parser.parse_known_args(argv)[0]).items() if value is not None}
    try:
        recipe = read_recipe(find_recipe(flags["config"])).values if "config" in flags else {}
    except ValueError:
        return flags
    return {**recipe, **flags}


def make_parser(command: str):
    """The strict parser of a training command, with our own flags."""
    parser = importlib.import_module(f"opd_trl.scripts.{command}").make_parser(prog="opd-trl plan")
    for name, options in OWN_FLAGS.items():
        parser.add_argument(*spellings(name), **options)
    return parser


def spellings(name: str) -> list[str]:
    """A flag with underscores and with dashes.

    >>> spellings("gpu_memory"), spellings("gpus")
    (['--gpu_memory', '--gpu-memory'], ['--gpus'])
    """
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def check_own(own: argparse.Namespace) -> None:
    """Refuse sizes that are none."""
    for name, lowest in (("gpus", 1), ("gpu_memory", 1), ("prompt_length", 1)):
        value = getattr(own, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} must be >= {lowest}, got {value:g}.")
