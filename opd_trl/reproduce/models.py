"""The models that arms start from: trained from nothing, adapted by rewards, stabilised by SFT; once per seed.

The functions that `settings.MAKERS` names take the folder of a seed, the settings of a study, and the seed.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from ..data import toy_task
from .measures import answer, right_answer
from .settings import Settings
from .task import MIXTURE, OTHER_STYLE, OWN_STYLE, Row, Style, asked_rows, taught_rows


# What keeps TRL's trainers quiet and on the CPU.
ON_CPU = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
}
#: The kinds of rows that the teacher of another style learns.
OTHER_MIXTURE = {"solve": 0.3, "worked": 0.7}


def load(folder: Path) -> tuple[Any, Any]:
    """The model in a folder that `save` wrote, in float32 on the CPU, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def teach(folder: Path, *, settings: Settings, style: Style, seed: int, kinds: dict[str, float]) -> None:
    """Train the model that a folder is named after, from nothing, on solutions in a style.

    Of its settings `kinds` takes the place of the kinds of rows, `size` are arguments of `toy_task.build_model`, and
    `snapshots` are saved beside it by name.
    """
    fields = dict(settings.models[folder.name])
    snapshots = {step: name for name, step in fields.pop("snapshots", {}).items()}
    kinds, size = fields.pop("kinds", kinds), fields.pop("size", {})

    class Snapshots(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs):
            if state.global_step in snapshots:
                save(model, processing_class, folder.parent / snapshots[state.global_step])

    tokenizer = toy_task.build_tokenizer()
    count = fields["max_steps"] * fields["per_device_train_batch_size"]
    rows = taught_rows(count, seed=seed, task=settings.task, style=style, kinds=kinds)
    model = toy_task.build_model(tokenizer, seed=seed, **size)
    fit(model, tokenizer, Dataset.from_list(rows), fields, seed=seed, callbacks=[Snapshots()])
    save(model, tokenizer, folder)


def fit(model, tokenizer, rows, settings: dict[str, Any], *, seed: int, callbacks: list[Any] | None = None) -> None:
    """Train a model in place with TRL's SFTTrainer; `settings` are fields of SFTConfig."""
    with tempfile.TemporaryDirectory() as scratch:
        args = SFTConfig(output_dir=scratch, seed=seed, data_seed=seed, **ON_CPU | settings)
        SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=callbacks).train()


def own(home: Path, settings: Settings, seed: int) -> None:
    """The model of the study; its snapshots are the weak and the strong student."""
    teach(home / "own", settings=settings, style=OWN_STYLE, seed=seed, kinds=MIXTURE)


def other(home: Path, settings: Settings, seed: int) -> None:
    """A teacher that learned by itself, from solutions in another style; a seed of its own."""
    teach(home / "other", settings=settings, style=OTHER_STYLE, seed=seed + 1000, kinds=OTHER_MIXTURE)


def adapted(home: Path, settings: Settings, seed: int) -> None:
    """A copy of the own model after GRPO on quick prompts, rewarded for right answers: TRL's own trainer."""
    fields = settings.models["adapted"]
    count = fields["max_steps"] * fields["per_device_train_batch_size"] // fields["num_generations"]
    rows = asked_rows(count, part="rlvr", prompts="quick", context=None, seed=seed, task=settings.task)
    model, tokenizer = load(home / "own")
    with tempfile.TemporaryDirectory() as scratch:
        args = GRPOConfig(output_dir=scratch, seed=seed, data_seed=seed, **ON_CPU | fields)
        trainer = GRPOTrainer(
            model,
            reward_funcs=right_answer,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.train()
        save(trainer.model, tokenizer, home / "adapted")


def stabilized(home: Path, settings: Settings, seed: int) -> None:
    """The own model after SFT on what the teacher of another style answers to quick prompts."""
    fields = settings.models["stabilized"]
    count = fields["max_steps"] * fields["per_device_train_batch_size"]
    model, tokenizer = load(home / "own")
    asked = asked_rows(count, part="sft", prompts="quick", context=None, seed=seed, task=settings.task)
    rows = teacher_text(home / "other", asked, seed=seed, temperature=0.3)
    fit(model, tokenizer, rows, fields, seed=seed)
    save(model, tokenizer, home / "stabilized")


def teacher_text(
    teacher: Path, rows: list[Row], *, seed: int, temperature: float = 1.0, max_new_tokens: int = 64
) -> Any:
    """A data set of `prompt` and `completion`: what a teacher answers to the prompts of rows."""
    found = answer(*load(teacher), rows, seeds=[seed], temperature=temperature, max_new_tokens=max_new_tokens)
    return Dataset.from_list(
        [
            {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": completion.text}]}
            for row, completion in zip(rows, found, strict=True)
        ]
    )


def save(model, tokenizer, folder: Path) -> None:
    """Save a model so that its folder is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)
