"""The strict parser of the training commands: TRL's, with recipes by name and no unknown key let through."""

import dataclasses
import difflib
import sys
from argparse import Action
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser
from trl.scripts.utils import DatasetConfig

from ..trainers.config import PROCESSES
from .launching import as_flags, flag_name, launch_arity, num_processes, unknown_tokens
from .recipes import FILE_KEYS, beside, find_recipe


DATASET_FIELDS = [field.name for field in dataclasses.fields(DatasetConfig)]


class StrictParser(TrlParser):
    """[`~trl.TrlParser`] that stops at whatever it does not know, with one line and exit status 2.

    Differences: `--config` takes a recipe's name as well as a path (`--config=...` too); an unknown key or flag is an
    error that names the nearest right one; keys of `accelerate launch` are allowed in a recipe, and on the command
    line where the caller launches (`return_remaining_strings=True`); files that a recipe names are looked for in the
    working directory first, then beside the recipe; a value of the wrong type in a recipe is an error as on the
    command line; no abbreviated flags.
    """

    def __init__(self, dataclass_types=None, **kwargs):
        super().__init__(dataclass_types, **{"allow_abbrev": False, **kwargs})
        self._recipe: Path | None = None
        self._launch_flags: list[str] = []

    def parse_args_and_config(
        self,
        args: Iterable[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
        separate_remaining_strings: bool = False,
    ) -> tuple:
        """Parse as TRL does; every error is one line on stderr and exit status 2.

        Args:
            args: the command line, that of the process by default.
            return_remaining_strings: also return the flags for `accelerate launch`; without it they are refused.
            fail_with_unknown_args: unknown keys fail always. Kept for TRL's signature.
            separate_remaining_strings: the launch flags of the recipe and of the command line as two lists.
        """
        try:
            return super().parse_args_and_config(
                self._find_config(list(sys.argv[1:] if args is None else args)),
                return_remaining_strings=return_remaining_strings,
                fail_with_unknown_args=False,  # set_defaults_with_config has refused them already
                separate_remaining_strings=separate_remaining_strings,
            )
        except yaml.YAMLError as error:
            self.error(f"{self._recipe} is not valid YAML: {error}")
        except (ValueError, TypeError, ImportError, OSError) as error:
            self.error(str(error))

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        """Take the values of a recipe as defaults; return the flags of `accelerate launch` among them."""
        fields = self._fields()
        others = {key: kwargs.pop(key) for key in list(kwargs) if key not in fields}
        arity = launch_arity() if others else {}
        unknown = [key for key in others if key not in arity]
        if unknown:
            lines = "; ".join(suggest(key, [*fields, *arity]) for key in unknown)
            raise ValueError(f"unknown key in {self._recipe}. {lines}")
        self._check_values({fields[key]: value for key, value in kwargs.items()})
        self._check_datasets(kwargs.get("datasets") or [])
        kwargs, others = self._beside_recipe(kwargs), self._beside_recipe(others)
        super().set_defaults_with_config(**kwargs)
        self._launch_flags = as_flags(others, arity)
        return self._launch_flags

    def parse_args_into_dataclasses(self, args=None, return_remaining_strings=False, **kwargs) -> tuple:
        """Refuse unknown flags, then build the dataclasses."""
        _, rest = self.parse_known_args(args)
        if rest:
            arity = launch_arity()
            self._check_flags(unknown_tokens(rest, arity), known=[*self._fields(), *arity])
            if not return_remaining_strings:
                raise ValueError(
                    f"{rest[0]} belongs to `accelerate launch`. Put it before the script, as in `accelerate launch "
                    f"{rest[0]} ... -m MODULE ...`, or start with `opd-trl opd` or `opd-trl opsd`."
                )
        if not return_remaining_strings:
            return super().parse_args_into_dataclasses(args, return_remaining_strings, **kwargs)
        # The caller launches: batches are multiples of the processes that it will start.
        token = PROCESSES.set(num_processes([*self._launch_flags, *rest]))
        try:
            return super().parse_args_into_dataclasses(args, return_remaining_strings, **kwargs)
        finally:
            PROCESSES.reset(token)

    def error(self, message: str):
        """Exit with status 2 and one line; argparse would print all 300 flags first."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _fields(self) -> dict[str, Action]:
        """Every field with its flag; of a switch and its `--no_` twin the switch."""
        return {a.dest: a for a in reversed(self._actions) if a.dest != "help"}

    def _find_config(self, args: list[str]) -> list[str]:
        """Return `args` with the recipe's file in place of its name."""
        places = [i for i, token in enumerate(args) if token == "--config" or token.startswith("--config=")]
        if not places:
            return args
        if len(places) > 1:
            raise ValueError("--config is given twice. Give one recipe; flags override its values.")
        at = places[0]
        _, given, name = args[at].partition("=")
        rest = args[at + 1 :]
        if not given:
            if not rest or rest[0].startswith("--"):
                raise ValueError("--config needs a recipe's name or path, e.g. --config system_prompt/demo.")
            name, *rest = rest
        self._recipe = find_recipe(name)
        return [*args[:at], "--config", str(self._recipe), *rest]

    def _check_values(self, values: dict[Action, Any]) -> None:
        """Pass plain values of a recipe through the types and choices of the flags: argparse skips defaults."""
        plain = {a: v for a, v in values.items() if isinstance(v, bool | int | float | str)}
        for action, value in plain.items():
            if isinstance(value, bool) and action.choices is not None:
                raise ValueError(
                    f"{self._recipe}: {action.dest}: {value} is no choice of {', '.join(map(str, action.choices))}. "
                    "YAML reads an unquoted yes or no as a boolean: quote it."
                )
        self.parse_known_args([f"{action.option_strings[0]}={value}" for action, value in plain.items()])

    def _check_datasets(self, datasets: list[Any]) -> None:
        """Refuse unknown keys in the entries of a data mixture."""
        unknown = [key for entry in datasets if isinstance(entry, dict) for key in entry if key not in DATASET_FIELDS]
        if unknown:
            lines = "; ".join(suggest(key, DATASET_FIELDS) for key in unknown)
            raise ValueError(f"unknown key under datasets in {self._recipe}. {lines}")

    def _check_flags(self, unknown: list[str], known: list[str]) -> None:
        if unknown:
            lines = "; ".join(suggest(token.partition("=")[0], known) for token in unknown)
            raise ValueError(f"unknown argument. {lines}")

    def _beside_recipe(self, values: dict[str, Any]) -> dict[str, Any]:
        """Point the files that a recipe names to their place beside it, where the working directory has none."""
        if self._recipe is None:
            return values
        folder = self._recipe.resolve().parent
        named = {key: value for key, value in values.items() if key in FILE_KEYS and isinstance(value, str)}
        return {**values, **{key: beside(value, folder) for key, value in named.items()}}


def suggest(given: str, known: list[str]) -> str:
    """Name the nearest right key or flag.

    >>> suggest("betta", ["beta", "learning_rate"])
    'betta: did you mean beta?'
    """
    near = difflib.get_close_matches(flag_name(given), known, n=1)
    if not near:
        return f"{given}: nothing is spelt like it; `--help` and `--help-all` list what there is."
    dashes = "--" if given.startswith("--") else ""
    return f"{given}: did you mean {dashes}{near[0]}?"
