"""Launch a trial of a run: a job of its own under the recipe's engine, so that nothing in this process changes."""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .launching import check_processes, launch, without
from .recipe_command import Flags, make_parser, spellings
from .subject import OVERRIDES, SHARED_FLAGS, Subject


#: Environment variable with what is asked of a trial, as JSON.
VARIABLE = "OPD_TRL_TRIAL"
#: What runs in each process of the job.
JOB = "opd_trl.cli.trials.job"


def run_trial(argv: list[str], own: Flags, asked: Subject, options: Mapping[str, str]) -> dict[str, Any]:
    """Try a run out and return what the job has written down.

    Args:
        argv: the command line of the pre-flight.
        own: its flags that are not the training's, besides `SHARED_FLAGS`.
        asked: what the command line says.
        options: fields of the run, and the values that they have in this trial.

    Raises:
        ValueError: what a trial refuses, or a job that ended otherwise.
    """
    flags = asked.own
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "trial.json")
        wanted = {"command": asked.command, "rules": flags.rule}
        wanted |= {"steps": flags.trial, "prompts": flags.trial_prompts}
        changes = [x for name, value in options.items() for x in (f"--{name}", value)]
        given = [*without_own(argv, SHARED_FLAGS | own), *OVERRIDES, "--output_dir", f"{folder}/out", *changes]
        parser = make_parser(asked.command, {}, prog="opd-trl preflight")
        *_, from_recipe, from_flags = parser.parse_args_and_config(
            given, return_remaining_strings=True, separate_remaining_strings=True
        )
        check_processes(from_recipe + from_flags)
        os.environ[VARIABLE] = json.dumps(wanted | {"output": str(output)})
        try:
            status = launch(JOB, from_recipe + from_flags, without(given, flags=from_flags))
        finally:
            del os.environ[VARIABLE]
        found = json.loads(output.read_text()) if output.is_file() else {"error": f"its job ended with {status}."}
    if "error" in found:
        raise ValueError(f"the trial: {found['error']}")
    return found


def without_own(argv: list[str], own: Flags) -> list[str]:
    """A command line less the flags of the pre-flight itself.

    >>> without_own(["--trial", "3", "--max_steps", "9"], {"trial": {"type": int}})
    ['--max_steps', '9']
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, options in own.items():
        parser.add_argument(*spellings(name), **options)
    return parser.parse_known_args(argv)[1]
