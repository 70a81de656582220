"""`opd-trl plan`: what a training run takes on each GPU, whether it fits, and which setting to change."""

import argparse
import warnings
from pathlib import Path
from typing import Any

from rich.table import Table

from ..durable import write_json
from ..foreign import number
from ..planning.component import gib
from ..scripts.consoles import plain_console
from .terminal import command_parser, refused


USAGE = """\
opd-trl plan --config RECIPE [--gpus N] [--gpu-memory GIB] [--prompt-length N] [--student-config DIR]
                    [--teacher-config [NAME=]DIR ...] [--json FILE] [--FIELD VALUE ...]
                    [flags of accelerate launch]
"""
DESCRIPTION = """\
Sizes a training run before it starts: an estimate of the memory on each GPU, component by component, for the engine
of --accelerate_config and for every other one, and the settings that save most. Nothing is loaded but the config.json
of the models.

Examples
  # the recipe as it is, on 8 GPUs of 80 GiB
  opd-trl plan --config math/opd_qwen3_1.7b_from_8b --accelerate_config zero2
  # without the hub: folders that hold the config.json of the models
  opd-trl plan --config math/opd_qwen3_1.7b_from_8b --student-config qwen3-1.7b --teacher-config qwen3-8b
  # a teacher behind opd-trl serve-teacher leaves its LM head and its hidden states on each GPU
  opd-trl plan --config math/opd_qwen3_1.7b_from_8b --teacher_server_url http://10.0.0.2:8001
  # would LoRA fit one GPU of 24 GiB?
  opd-trl plan --config my_recipe.yaml --use_peft --accelerate_config single_gpu --gpu-memory 24
"""
EXIT = "Exit status: 0 fits (tight included: only the reserve of 10 % is touched), 1 does not fit, 2 bad input."
CONFIG = "a name (`opd-trl recipes list`) or a YAML file; its keys are flags too, as for opd and opsd"
GPUS = "how many GPUs; default: num_processes, or those of the accelerate configuration, or 8"
PROMPT_LENGTH = """\
tokens of a prompt, padding included; default 512. The teacher's: max_teacher_prompt_length, or the same"""
STUDENT = "folder with the student's config.json, in place of model_name_or_path"
TEACHER = """\
folder with the teacher's config.json, in place of teacher_model_name_or_path; of several teachers NAME=DIR for each
that is not at hand. A served teacher whose sizes nothing gives is left out, and the report says so: the server is not
asked"""
# The flags of the command itself, beside those of the training commands.
OWN_FLAGS: dict[str, dict[str, Any]] = {
    "gpus": {"type": int, "metavar": "N", "help": GPUS},
    "gpu_memory": {"type": number, "default": 80.0, "metavar": "GIB", "help": "memory of one GPU; default 80"},
    "prompt_length": {"type": int, "default": 512, "metavar": "N", "help": PROMPT_LENGTH},
    "student_config": {"metavar": "DIR", "help": STUDENT},
    "teacher_config": {"nargs": "+", "metavar": "DIR", "help": TEACHER},
    "json": {"type": Path, "metavar": "FILE", "help": "write all figures, in bytes"},
}


def make_help() -> argparse.ArgumentParser:
    """What `--help` prints; the parser that reads the flags knows those of training too, and takes seconds to load."""
    parser = command_parser("opd-trl plan", DESCRIPTION, EXIT, usage=USAGE)
    parser.add_argument("--config", metavar="RECIPE", help=CONFIG)
    for name, options in OWN_FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    return parser


def main(argv: list[str]) -> int:
    """Run `opd-trl plan` and return its exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        make_help().print_help()
        return 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training process gives them
            from ..planning.inputs import plan

            figures, path = plan(argv, OWN_FLAGS)
        show(figures)
        if path is not None:
            write_json(path, figures)
    except (ValueError, ImportError, OSError) as error:
        return refused("opd-trl plan", error)
    return int(figures["verdict"] == "does not fit")


def show(figures: dict[str, Any]) -> None:
    """Print the figures: components, total, engines, advice, what is not counted."""
    console = plain_console(soft_wrap=True)
    console.print(heading(figures))
    console.print(component_table(figures))
    for note in figures["notes"]:
        console.print(f"\n{note}")
    console.print(conclusion(figures))
    console.print(engine_table(figures["engines"]))
    if figures["advice"]:
        console.print("\nOne change at a time, the largest saving first:")
    for line in figures["advice"]:
        console.print(f"  {line['change']} saves {gib(line['saves'])} GiB: {gib(line['total'])}, {line['verdict']}")


def heading(figures: dict[str, Any]) -> str:
    """The first lines of the report: engine, parameters, teachers, lengths of prompts."""
    gpus = f" on {figures['gpus']} GPUs" if figures["gpus"] > 1 else ""
    return (
        f"Memory on each GPU, {figures['engine']}{gpus}: an estimate, not a measurement.\n"
        f"Student {figures['student_parameters']:,} parameters, {figures['trained_parameters']:,} trained; "
        f"{teachers_in_words(figures['teachers'])}; "
        f"prompts of {figures['prompt_length']}, the teacher's of {figures['teacher_prompt_length']} tokens.\n"
    )


def teachers_in_words(teachers: list[dict[str, Any]]) -> str:
    """The teachers as the first lines of the report name them: name, parameters, whether one is served.

    >>> teachers_in_words([{"name": "math", "parameters": 1000, "served": False},
    ...                    {"name": "code", "parameters": None, "served": True}])
    'teachers math 1,000, code of unknown size behind HTTP'
    """
    if not teachers:
        return "its own teacher"
    words = [
        (x["name"], f"{x['parameters']:,}" if x["parameters"] else "of unknown size", "behind HTTP" * x["served"])
        for x in teachers
    ]
    return f"teacher{'s' * (len(words) > 1)} " + ", ".join(" ".join(filter(None, parts)) for parts in words)


def conclusion(figures: dict[str, Any]) -> str:
    """Does it fit, and what is not in the total?"""
    memory, reserve = figures["gpu_memory"], figures["reserve"]
    return (
        f"\n{figures['verdict'].capitalize()}: {gib(figures['total'])} of {gib(memory)} GiB at the peak of a step "
        f"({figures['peak']}); in brackets what is not there then.\n"
        f"`fits` keeps {reserve:.0%} free, {gib((1 - reserve) * memory)} GiB at most, for what is not counted: "
        f"{figures['not_counted']}.\n"
        "A loss with [tokens, vocabulary] log-probabilities of both models in float32 would add "
        f"{gib(figures['dense_log_probs'])} GiB; they are never built.\n"
    )


def component_table(figures: dict[str, Any]) -> Table:
    """One row for each component, and the total of those at the peak."""
    table = Table(box=None, pad_edge=False)
    table.add_column("component", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("computed as")
    for part in figures["components"]:
        amount = gib(part["bytes"])
        table.add_row(part["name"], amount if part["at_peak"] else f"({amount})", part["how"])
    table.add_row("total", gib(figures["total"]), "")
    return table


def engine_table(rows: list[dict[str, Any]]) -> Table:
    """What the same recipe takes under every engine, one row for each."""
    table = Table(box=None, pad_edge=False)
    for column in ("--accelerate_config", "engine", "GPUs", "GiB on each", "verdict"):
        number = column in ("GPUs", "GiB on each")
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(row["accelerate_config"], row["engine"], str(row["gpus"]), gib(row["total"]), row["verdict"])
    return table
