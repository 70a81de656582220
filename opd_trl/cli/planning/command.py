"""From the command line of `opd-trl plan` to its figures."""

import argparse
from pathlib import Path
from typing import Any

from ...planning.engine import read_engine
from ...planning.inputs import read_workload
from ...scripts.launching import launch_arguments
from ...scripts.recipe_command import check_misplaced, make_parser, peek, training_command
from ...trainers.config_checks import is_url
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
    recipe = peek(argv, "generation_batch_size")
    parser = make_parser(training_command(recipe), OWN_FLAGS, prog="opd-trl plan")
    check_misplaced(recipe, OWN_FLAGS, prog="opd-trl plan")
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


def check_own(own: argparse.Namespace) -> None:
    """Refuse sizes that are none."""
    for name, lowest in (("gpus", 1), ("gpu_memory", 1), ("prompt_length", 1)):
        value = getattr(own, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} must be >= {lowest}, got {value:g}.")
