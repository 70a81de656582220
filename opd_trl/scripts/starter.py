"""A folder to start from: a recipe, prompts to train and to measure on, and what the teacher alone reads."""

import re
import shutil
from pathlib import Path

from ..durable import atomically
from .recipe_files import find_recipe


#: A rule with worked examples, which small models obey too (docs/results-rules.md), and how it is judged.
CONTEXT = "system_prompt/rules/bullets"
RULES = "--rule bullets"
#: What both kinds of recipe share, behind what is theirs.
RECIPE = """\
# {title}
#
{steps}

model_name_or_path: {model}
dataset_name: {folder}/prompts.jsonl # a column `prompt`; also .csv, .parquet or a hub id
output_dir: runs/{name}

# What is learned from
{teacher}
# How much: LoRA, 50 steps of 8 answers of up to 64 tokens
use_peft: true
lora_r: 16
lora_alpha: 32
lora_target_modules: all-linear
max_steps: 50
per_device_train_batch_size: 8
max_completion_length: 64
learning_rate: 2.0e-4 # what matters most: try three with opd-trl preflight --rates 5e-5,2e-4,5e-4
lr_scheduler_type: cosine
warmup_steps: 5

logging_steps: 1
save_strategy: "no"
report_to: none # or wandb, trackio, tensorboard
"""
SELF = """\
privileged_context_file: {folder}/context.json # messages: your rule, then questions answered by it
privileged_builder: few_shot # or: system_prompt, and a context of plain text
divergence: mixed # finds what the student never says, and sharpens what it says
loss_support: union
"""
OTHER = """\
teacher_model_name_or_path: {teacher} # frozen; the defaults of the loss fit a teacher of the same family
"""


def write(folder: Path, model: str, teacher: str | None) -> list[str]:
    """Write the files of a start; returns the commands to run next.

    Raises:
        ValueError: one of the files is there, or a name that YAML would read as something else.
    """
    for name in (str(folder), model, teacher or "x"):
        if not re.fullmatch(r"[\w./~-]+", name) or name != name.strip("-"):
            raise ValueError(f"{name!r}: letters, digits and any of . / ~ _ - are taken here.")
    prompts, rule = find_recipe("system_prompt/demo").with_suffix(""), find_recipe(CONTEXT).with_suffix("")
    copies = {"prompts.jsonl": prompts / "train.jsonl", "test.jsonl": prompts / "test.jsonl"}
    if not teacher:
        copies["context.json"] = rule / "privileged_context.json"
    there = [name for name in ("recipe.yaml", *copies) if (folder / name).exists()]
    if there:
        raise ValueError(f"{folder} holds {', '.join(there)} already. Give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in copies.items():
        shutil.copyfile(source, folder / name)
    with atomically(folder / "recipe.yaml") as file:
        file.write(recipe(folder, model, teacher))
    return next_steps(folder, model, teacher)


def recipe(folder: Path, model: str, teacher: str | None) -> str:
    """The text of a recipe."""
    title = f"{folder.name}: {'distillation from ' + teacher if teacher else 'a rule, learned without the prompt'}."
    steps = "\n".join(f"#   {step}" for step in next_steps(folder, model, teacher))
    learned = (OTHER if teacher else SELF).format(folder=folder, teacher=teacher)
    return RECIPE.format(title=title, steps=steps, model=model, folder=folder, name=folder.name, teacher=learned)


def next_steps(folder: Path, model: str, teacher: str | None) -> list[str]:
    """The commands from a new folder to a measured model."""
    command, run, test = ("opd" if teacher else "opsd"), f"runs/{folder.name}", f"--data {folder}/test.jsonl"
    measure = f"opd-trl eval --model {run} --suite rules {RULES} {test}"
    look = f"opd-trl chat {teacher}" if teacher else f"opd-trl chat {model} --context {folder}/context.json"
    return [
        f"{look:<60}  # does the teacher do it well?",
        f"{f'opd-trl preflight --config {folder}/recipe.yaml':<60}  # will it work? minutes",
        f"{f'opd-trl {command} --config {folder}/recipe.yaml':<60}  # train",
        f"{f'opd-trl chat {run}':<60}  # before and after",
        *([] if teacher else [f"{measure}  # how often it follows"]),
    ]
