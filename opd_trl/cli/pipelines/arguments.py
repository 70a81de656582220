"""From the arguments of a stage to its command line, checked by the command's own parser.

Runs as a process of its own (`python -m opd_trl.cli.pipelines.arguments`, JSON in and out): the parsers import torch
and may touch a GPU, which the pipeline's process, alive for days beside its stages, must not.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ...scripts.launching import as_flags, launch_arity, resolve_accelerate_config, suggest
from ...scripts.reward_names import reward_func
from .commands import find_command, parser_of
from .document import Stage


def command_lines(stages: Iterable[Stage], *, without_gpu: bool) -> dict[str, list[str]]:
    """Return the arguments of each stage as its command takes them, read by the command's own parser.

    `without_gpu` also accepts what needs a GPU that this machine lacks: a look at a plan, not a run. Raises ValueError
    that names the stage for an unknown argument or a wrong value.
    """
    stages = list(stages)
    asked = {
        stage.name: {
            "run": stage.command.name,
            "config": stage.config,
            "origin": str(stage.recipe.path) if stage.recipe else "args",
            "args": stage.flags,
            "without_gpu": without_gpu,
        }
        for stage in stages
        if not stage.command.script
    }
    checked = check_elsewhere(asked) if asked else {}
    for name, (error, _) in checked.items():
        if error:
            raise ValueError(f"stage {name}: {error}")
    return {
        stage.name: flags_of_script(stage.args) if stage.command.script else checked[stage.name][1] for stage in stages
    }


def check_elsewhere(asked: dict[str, dict[str, Any]]) -> dict[str, tuple[str | None, list[str]]]:
    """Run `main` in another process: stages as JSON -> `[error, command line]` of each; ValueError where it fails."""
    answer = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(asked, default=str), capture_output=True, text=True
    )
    if answer.returncode:
        raise ValueError(f"the arguments could not be checked: {answer.stderr.strip().splitlines()[-1]}")
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    """Check what stands on stdin; the last line on stdout maps stages to `[error, command line]`."""
    asked = json.load(sys.stdin)
    checked = {}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if os.getcwd() not in sys.path:  # for builders and reward functions of the user's own
            sys.path.append(os.getcwd())
        for name, stage in asked.items():
            try:
                checked[name] = (None, command_line(**stage))
            except (ValueError, TypeError, ImportError, OSError) as error:
                checked[name] = (" ".join(str(error).split()), [])
    print(json.dumps(checked))


def command_line(
    *, run: str, config: dict[str, Any], origin: str, args: dict[str, Any], without_gpu: bool
) -> list[str]:
    """Return the flags of one stage; raises ValueError where its command does not take them."""
    command = find_command(run, Path())
    parser = parser_of(command)
    parser.error = refuse
    launch = launch_arity() if command.training else {}
    line = flags(args, parser, launch, "args")
    if not command.training:
        parser.parse_args(line)
        return line
    known = [*names_of(parser), *launch, "env"]
    unknown = [key for key in config if key not in known]
    if unknown:
        raise ValueError(f"unknown key in {origin}. " + "; ".join(suggest(key, known) for key in unknown))
    check_training(parser, config, origin, line, without_gpu="use_cpu" not in {**config, **args} and without_gpu)
    for name in {**config, **args}.get("reward_funcs") or [] if command.name.startswith("trl ") else []:
        reward_func(name, of_trl=True)
    return line


def check_training(parser: Any, config: dict[str, Any], origin: str, line: list[str], *, without_gpu: bool) -> None:
    """Build the configuration of a training run from the recipe and the flags, as its process will."""
    line = [*line, *(["--use_cpu"] if without_gpu else [])]
    if not config:
        parser.parse_args_and_config(line, return_remaining_strings=True)
        return
    before = dict(os.environ)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(config, file)
        file.flush()
        try:
            parser.parse_args_and_config(["--config", file.name, *line], return_remaining_strings=True)
        except ValueError as error:
            raise ValueError(str(error).replace(file.name, origin)) from error
        finally:
            os.environ.clear()
            os.environ.update(before)  # a recipe's `env` is for its own stage


def refuse(message: str) -> None:
    """Raise ValueError in place of argparse's own exit."""
    raise ValueError(message)


def flags(args: dict[str, Any], parser: argparse.ArgumentParser, launch: dict[str, int], where: str) -> list[str]:
    """Return arguments in the form in which a parser takes them.

    A switch is given or left out; a list is several values, or one joined by commas where the flag takes one; a
    mapping is JSON.

    Raises:
        ValueError: an unknown name, or a value of no use.
    """
    spelt = {option: action for action in parser._actions for option in action.option_strings}
    positional = {action.dest: action for action in parser._actions if not action.option_strings}
    line, values = [], {}
    for key, value in args.items():
        option = next((name for name in (f"--{key}", f"--{key.replace('_', '-')}") if name in spelt), None)
        if value is None:
            raise ValueError(f"{key} in {where} has no value. Leave it out, or give one.")
        if option is not None:
            line += flag(option, spelt[option], value)
        elif key in positional:
            values[key] = [plain(entry) for entry in (value if isinstance(value, list) else [value])]
        elif key in launch:
            line += resolve_accelerate_config(as_flags({key: value}, launch))
        else:
            known = [*names_of(parser), *positional, *launch]
            raise ValueError(f"unknown argument in {where}. {suggest(key, known)}")
    # In front: behind a flag that takes several values they would be more of them.
    return [*(text for key in positional for text in values.get(key, [])), *line]


def names_of(parser: argparse.ArgumentParser) -> list[str]:
    """The names of a parser's long flags."""
    options = (option for action in parser._actions for option in action.option_strings)
    return [option.removeprefix("--") for option in options if option.startswith("--")]


def flag(option: str, action: argparse.Action, value: Any) -> list[str]:
    """Return the tokens that give an argument to a parser: the flag, and its values."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{option} is a switch: give true or false, got {value!r}.")
        off = [text for text in action.option_strings if text.startswith("--no-")]
        return [option] if value else off[:1] if isinstance(action, argparse.BooleanOptionalAction) else []
    if not isinstance(value, list):
        return token(option, value)
    if isinstance(action, argparse._AppendAction):
        return [text for entry in value for text in token(option, entry)]
    if action.nargs is None or action.nargs == "?":
        return token(option, ",".join(map(plain, value)))
    return [option, *map(plain, value)]


def token(option: str, value: Any) -> list[str]:
    """A flag with one value; joined by `=` where the value could be read as a flag."""
    text = plain(value)
    return [f"{option}={text}"] if text.startswith("-") else [option, text]


def plain(value: Any) -> str:
    """A value as the text that a flag takes: a text as it is, anything else as JSON.

    >>> plain(True), plain({"enable_thinking": False}), plain(1e-5)
    ('true', '{"enable_thinking": false}', '1e-05')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def flags_of_script(args: dict[str, Any]) -> list[str]:
    """The arguments of a script that is not known: `--key value ...`, a switch for true, nothing for false."""
    line = []
    for key, value in args.items():
        if isinstance(value, bool):
            line += [f"--{key}"] if value else []
        elif isinstance(value, list):
            line += [f"--{key}", *map(plain, value)]
        else:
            line += token(f"--{key}", value)
    return line


if __name__ == "__main__":
    main()
