"""`opd-trl plan`: what a training run takes on each GPU, whether it fits, and which setting to change."""

import argparse
import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml

from .recipes import find_recipe


HELP = """\
usage: opd-trl plan --config RECIPE [--gpus N] [--gpu-memory GIB] [--prompt-length N] [--student-config DIR]
                    [--teacher-config DIR] [--json FILE] [--FIELD VALUE ...] [flags of accelerate launch]

Sizes a training run before it starts: an estimate of the memory on each GPU, component by component, for the engine
of --accelerate_config and for every other one, and the settings that save most. Nothing is loaded but the config.json
of the models.

Examples
  # the recipe as it is, on 8 GPUs of 80 GiB
  opd-trl plan --config math/opd_qwen3_1.7b_from_8b --accelerate_config zero2
  # without the hub: folders that hold the config.json of the models
  opd-trl plan --config math/opd_qwen3_1.7b_from_8b --student-config qwen3-1.7b --teacher-config qwen3-8b
  # would LoRA fit one GPU of 24 GiB?
  opd-trl plan --config my_recipe.yaml --use_peft --accelerate_config single_gpu --gpu-memory 24

  --config RECIPE         a name (`opd-trl recipes list`) or a YAML file; its keys are flags too, as for opd and opsd
  --gpus N                how many GPUs; default: num_processes, or those of the accelerate configuration, or 8
  --gpu-memory GIB        memory of one GPU; default 80
  --prompt-length N       tokens of a prompt, padding included; default 512. The teacher's: max_teacher_prompt_length,
                          or the same
  --student-config DIR    folder with the student's config.json, in place of model_name_or_path
  --teacher-config DIR    folder with the teacher's config.json, in place of teacher_model_name_or_path
  --json FILE             write all figures, in bytes

Exit status: 0 fits (tight included: only the reserve of 10 % is touched), 1 does not fit, 2 bad input.
"""

# The flags that `opd-trl plan` adds to those of the training commands.
OWN_FLAGS = {
    "gpus": {"type": int},
    "gpu_memory": {"type": float, "default": 80.0},
    "prompt_length": {"type": int, "default": 512},
    "student_config": {},
    "teacher_config": {},
    "json": {"type": Path},
}


def main(argv: list[str]) -> int:
    """Run `opd-trl plan` and return its exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training process gives them
            figures, path = plan(argv)
        if path is not None:
            path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except (ValueError, ImportError, OSError) as error:
        print(f"opd-trl plan: error: {error}", file=sys.stderr)
        return 2
    from .plan_report import show

    show(figures)
    return int(figures["verdict"] == "does not fit")


def plan(argv: list[str]) -> tuple[dict[str, Any], Path | None]:
    """Parse a command line and size its run; return the figures and the file to write them to.

    Raises:
        ValueError: what is given cannot be sized.
    """
    recipe = peek(argv)
    parser = make_parser("opd" if recipe.get("teacher_model_name_or_path") else "opsd")
    misplaced = [key for key in recipe if key in OWN_FLAGS]
    if misplaced:
        raise ValueError(f"{misplaced[0]} is no key of a recipe. Give it as a flag of `opd-trl plan`.")
    # --use_cpu: without a GPU transformers refuses bf16, and a plan is often made where there is none.
    _, training, model_args, _, own, launch_flags = parser.parse_args_and_config(
        [*argv, "--use_cpu"], return_remaining_strings=True
    )
    check_own(own)
    from .launching import launch_arguments
    from .plan_inputs import read_engine, read_workload
    from .plan_report import size

    on_cpu = str(recipe.get("use_cpu", False)).lower() in ("true", "yes", "1")
    engine, engines = read_engine(launch_arguments(launch_flags, "script"), gpus=own.gpus, on_cpu=on_cpu)
    if training.teacher_offload is not None and engine.stage == 3:
        raise ValueError(
            f"teacher_offload={training.teacher_offload!r} moves a whole teacher, and {engine.title} shards it. Leave "
            "it out, or take ZeRO-2 or DDP."
        )
    if "generation_batch_size" in recipe:  # of all GPUs
        training.steps_per_generation = max(1, training.steps_per_generation // engine.gpus)
    return size(read_workload(training, model_args, own, on_cpu=on_cpu), engine, engines), own.json


def peek(argv: list[str]) -> dict[str, Any]:
    """Return the recipe and those flags that decide how it is parsed: is there a teacher, is there a GPU?

    What is wrong with the recipe is left to the parser.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "teacher_model_name_or_path", "use_cpu", "generation_batch_size"):
        parser.add_argument(*spellings(name), nargs="?", const="true")
    flags = {name: value for name, value in vars(parser.parse_known_args(argv)[0]).items() if value is not None}
    try:
        recipe = yaml.safe_load(find_recipe(flags["config"]).read_text(encoding="utf-8")) if "config" in flags else {}
    except (ValueError, yaml.YAMLError):
        return flags
    return {**recipe, **flags} if isinstance(recipe, dict) else flags


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
