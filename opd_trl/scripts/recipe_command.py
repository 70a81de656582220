"""Commands that look at a training run before it starts: they take its recipe and its flags, and some of their own."""

import argparse
import importlib
from typing import Any

from ..trainers.config.config_checks import SEPARATE_TEACHERS
from .recipe_files import find_recipe, read_recipe


Flags = dict[str, dict[str, Any]]


def peek(argv: list[str], *further: str) -> dict[str, Any]:
    """Return the recipe and those flags that decide how it is parsed: is there a separate teacher, is there a GPU?

    `further` names more flags to look for. What is wrong with the recipe is left to the parser.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", nargs="?")
    for name in (*SEPARATE_TEACHERS, "use_cpu", *further):
        parser.add_argument(*spellings(name), nargs="?", const="true")
    flags = {name: value for name, value in vars(parser.parse_known_args(argv)[0]).items() if value is not None}
    try:
        recipe = {}
        for name in filter(None, flags.pop("config", [])):
            recipe |= read_recipe(find_recipe(name)).values
    except ValueError:
        return flags
    return {**recipe, **flags}


def training_command(recipe: dict[str, Any]) -> str:
    """The command that trains it: `opd` where it names a separate teacher, else `opsd`."""
    return "opd" if any(recipe.get(name) for name in SEPARATE_TEACHERS) else "opsd"


def make_parser(command: str, own: Flags, *, prog: str):
    """The strict parser of a training command, with further flags."""
    parser = importlib.import_module(f"opd_trl.scripts.{command}").make_parser(prog=prog)
    for name, options in own.items():
        parser.add_argument(*spellings(name), **options)
    return parser


def check_misplaced(recipe: dict[str, Any], own: Flags, *, prog: str) -> None:
    """Refuse a recipe that holds a flag of the command."""
    misplaced = [key for key in recipe if key in own]
    if misplaced:
        raise ValueError(f"{misplaced[0]} is not a key of a recipe. Give it as a flag of `{prog}`.")


def spellings(name: str) -> list[str]:
    """The spellings of a flag, with underscores and with dashes.

    >>> spellings("gpu_memory"), spellings("gpus")
    (['--gpu_memory', '--gpu-memory'], ['--gpus'])
    """
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))
