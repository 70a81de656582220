"""Every `opd-trl ...` on the pages names a command, options and recipes that exist."""

import contextlib
import functools
import importlib.util
import io
import re

import pytest

from opd_trl.cli.main import COMMANDS
from opd_trl.cli.main import main as opd_trl
from opd_trl.scripts.launching import flag_name, launch_arity
from opd_trl.scripts.recipe_files import accelerate_names, find_recipe
from opd_trl.trainers.config.published_methods import METHODS

from .pages import commands


CALLS = commands()


@functools.cache
def help_of(*words: str) -> str:
    """What `opd-trl WORDS --help` prints; nothing where there is no such command."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        opd_trl([*words, "--help"])
    return printed.getvalue()


@functools.cache
def fields(command: str) -> frozenset[str]:
    """The flags of a training command, those of `accelerate launch` among them."""
    parser = importlib.import_module(f"opd_trl.scripts.{command}").make_parser()
    flags = {flag_name(option) for action in parser._actions for option in action.option_strings}
    return frozenset(flags | launch_arity().keys() | {"config", "help", "help_all"})


def options(command: str, rest: list[str]) -> frozenset[str]:
    """The options of a command, or of the command below it that the words name."""
    if command in ("opd", "opsd"):
        return fields(command)
    text = help_of(command)
    if rest and not rest[0].startswith("-"):
        below = help_of(command, rest[0])
        assert below, f"opd-trl {command} has no {rest[0]}"
        text += below
    named = frozenset(flag_name(option) for option in re.findall(r"--[a-z][\w-]*", text))
    return named | fields("opd") | fields("opsd") if command == "plan" else named


def value_of(words: list[str], flag: str) -> list[str]:
    """The values that a flag is given."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    return [value for word, value in pairs if word == flag] + [
        word.partition("=")[2] for word in words if word.startswith(f"{flag}=")
    ]


def is_the_readers_own(name: str) -> bool:
    """Is it a recipe that a page tells its reader to write?"""
    return name.endswith(".yaml") and ("/" not in name or name.startswith("mine/"))


def test_there_are_commands_to_check():
    assert len(CALLS) > 20


@pytest.mark.parametrize(("where", "words"), CALLS, ids=[where for where, _ in CALLS])
def test_a_command_of_the_pages_exists_with_its_options(where, words):
    command, *rest = words
    if command in ("--help", "--version", "COMMAND"):
        return
    assert command in COMMANDS
    used = {flag_name(word) for word in rest if word.startswith("--") and word != "--"} - {"FIELD"}
    unknown = used - options(command, rest)
    assert not unknown


@pytest.mark.parametrize(("where", "words"), CALLS, ids=[where for where, _ in CALLS])
def test_what_a_command_names_exists(where, words):
    """Recipes, accelerate configurations and methods."""
    shown = words[2:3] if words[:2] in (["recipes", "show"], ["recipes", "copy"]) else []
    recipes = [name for name in value_of(words, "--config") + shown if not is_the_readers_own(name)]
    assert all(find_recipe(name).is_file() for name in recipes)
    assert set(value_of(words, "--accelerate_config")) <= set(accelerate_names())
    methods = value_of(words, "--method") + (words[1:2] if words[0] == "methods" else [])
    assert {name for name in methods if name.islower() and not name.startswith("--")} <= METHODS.keys()
