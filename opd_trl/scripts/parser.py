"""The strict parser of the training commands: TRL's, with recipes by name and no unknown key let through."""

import dataclasses
import os
import sys
from argparse import Action
from collections.abc import Iterable
from typing import Any

from trl import TrlParser
from trl.scripts.utils import DatasetConfig

from ..given import check_finite
from ..trainers.config.config_checks import PROCESSES
from .code_of_others import code_in, name_code
from .launching import as_flags, launch_arity, num_processes, suggest, unknown_tokens
from .recipe_files import Recipe, find_recipe, read_recipe, stacked


DATASET_FIELDS = [field.name for field in dataclasses.fields(DatasetConfig)]


class StrictParser(TrlParser):
    """[`~trl.TrlParser`] that stops at whatever it does not know, with one line and exit status 2.

    Differences: `--config` takes a recipe's name as well as a path (`--config=...` too), several times, later ones
    winning; a recipe may extend others (`extends`, see `read_recipe`); an unknown key or flag is an error that names
    the nearest right one; keys of `accelerate launch` are allowed in a recipe, and on the command line where the
    caller launches (`return_remaining_strings=True`); files that a recipe names are looked for in the working
    directory first, then beside the file that names them; a value of the wrong type in a recipe is an error as on the
    command line; no abbreviated flags.
    """

    def __init__(self, dataclass_types=None, **kwargs):
        super().__init__(dataclass_types, **{"allow_abbrev": False, **kwargs})
        self._recipe: Recipe | None = None
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
            argv = self._take_recipe(list(sys.argv[1:] if args is None else args))
            output = self.parse_args_into_dataclasses(argv, return_remaining_strings=return_remaining_strings)
            self._name_code(output)
        except (ValueError, TypeError, ImportError, OSError, RecursionError) as error:  # RecursionError: nested JSON
            self.error(str(error))
        if not return_remaining_strings:
            return output
        *parsed, from_line = output
        if separate_remaining_strings:
            return (*parsed, self._launch_flags, from_line)
        return (*parsed, self._launch_flags + from_line)

    def _name_code(self, parsed: tuple) -> None:
        """Name the code of others that the parsed arguments would run, before anything imports it."""
        values = dict(self._recipe.resolved_values()) if self._recipe else {}
        for arguments in filter(dataclasses.is_dataclass, parsed):
            values |= vars(arguments)
        name_code(code_in(values), prog=self.prog, refuse=values.get("no_code", False))

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        """Take the values of a recipe as defaults; return the flags of `accelerate launch` among them."""
        fields = self._fields()
        others = {key: kwargs.pop(key) for key in list(kwargs) if key not in fields}
        arity = launch_arity() if others else {}
        unknown = [key for key in others if key not in arity]
        if unknown:
            raise ValueError(self._unknown_keys(unknown, [*fields, *arity]))
        self._check_values({fields[key]: value for key, value in kwargs.items()})
        self._check_datasets(kwargs.get("datasets") or [])
        super().set_defaults_with_config(**kwargs)
        self._launch_flags = as_flags(others, arity)
        return self._launch_flags

    def parse_args_into_dataclasses(self, args=None, return_remaining_strings=False, **kwargs) -> tuple:
        """Refuse unknown flags, then build the dataclasses."""
        _, rest = self.parse_known_args(args)
        if rest:
            arity = launch_arity()
            if unknown := unknown_tokens(rest, arity):
                known = [*self._fields(), *arity]
                lines = "; ".join(suggest(token.partition("=")[0], known) for token in unknown)
                raise ValueError(f"unknown argument. {lines}")
            if not return_remaining_strings:
                raise ValueError(
                    f"{rest[0]} belongs to `accelerate launch`. Put it before the script, as in `accelerate launch "
                    f"{rest[0]} ... -m MODULE ...`, or start with `opd-trl opd` or `opd-trl opsd`."
                )
        # Where the caller launches, batches are multiples of the processes that it will start.
        processes = num_processes([*self._launch_flags, *rest]) if return_remaining_strings else None
        token = PROCESSES.set(processes)
        try:
            parsed = super().parse_args_into_dataclasses(args, return_remaining_strings, **kwargs)
        finally:
            PROCESSES.reset(token)
        for arguments in filter(dataclasses.is_dataclass, parsed):
            check_finite(arguments)
        return parsed

    def error(self, message: str):
        """Exit with status 2 and one line; argparse would print all 300 flags first."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _fields(self) -> dict[str, Action]:
        """Every field with its flag; of a switch and its `--no_` twin the switch."""
        return {a.dest: a for a in reversed(self._actions) if a.dest != "help"}

    def _take_recipe(self, args: list[str]) -> list[str]:
        """Take environment and defaults from the recipes that `--config` names; return the other arguments."""
        names, args = split_config(args)
        if not names:
            return args
        self._recipe = stacked([read_recipe(find_recipe(name)) for name in names])
        values = self._recipe.resolved_values()
        if "stages" in values:
            path = self._recipe.origins["stages"]
            raise ValueError(f"{path} is a pipeline. Run it with `opd-trl pipeline --config {path}`.")
        environment = values.pop("env", {})
        if not isinstance(environment, dict):
            raise ValueError(
                f"env in {self._recipe.origins['env']} must map names to values, got a {type(environment).__name__}."
            )
        os.environ.update({key: str(value) for key, value in environment.items()})
        self.set_defaults_with_config(**values)
        return args

    def _check_values(self, values: dict[Action, Any]) -> None:
        """Pass plain values of a recipe through the types and choices of the flags: argparse skips defaults."""
        plain = {a: v for a, v in values.items() if isinstance(v, bool | int | float | str)}
        for action, value in plain.items():
            if isinstance(value, bool) and action.choices is not None:
                choices = ", ".join(map(str, action.choices))
                raise ValueError(
                    f"{self._origin(action.dest)}: {action.dest}: {value} is not a choice of {choices}. "
                    "YAML reads an unquoted yes or no as a boolean: quote it."
                )
        self.parse_known_args([f"{action.option_strings[0]}={value}" for action, value in plain.items()])

    def _check_datasets(self, datasets: list[Any]) -> None:
        """Refuse unknown keys in the entries of a data mixture."""
        unknown = [key for entry in datasets if isinstance(entry, dict) for key in entry if key not in DATASET_FIELDS]
        if unknown:
            lines = "; ".join(suggest(key, DATASET_FIELDS) for key in unknown)
            raise ValueError(f"unknown key under datasets in {self._origin('datasets')}. {lines}")

    def _unknown_keys(self, unknown: list[str], known: list[str]) -> str:
        """Say what is unknown in which file, and the nearest right names."""
        files = dict.fromkeys(map(self._origin, unknown))
        return " ".join(
            f"unknown key in {file}. " + "; ".join(suggest(key, known) for key in unknown if self._origin(key) == file)
            for file in files
        )

    def _origin(self, key: str) -> str:
        """The file in which a key of the recipe stands."""
        return str(self._recipe.origins[key]) if self._recipe else "the defaults"


def split_config(args: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the values of `--config` and the other arguments.

    >>> split_config(["--config", "a", "--top_k", "2", "--config=b"])
    (['a', 'b'], ['--top_k', '2'])
    """
    names, rest, tokens = [], [], iter(args)
    for token in tokens:
        flag, given, name = token.partition("=")
        if flag != "--config":
            rest.append(token)
            continue
        name = name if given else next(tokens, "--")
        if name.startswith("--"):
            raise ValueError("--config needs a recipe's name or path, e.g. --config system_prompt/demo.")
        names.append(name)
    return names, rest
