"""The model card of a trained model: its `README.md`, from what its run says of itself."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from huggingface_hub import ModelCardData


DIVERGENCE = "distillation/per_token_divergence"
#: What of the settings is worth a line, in this order.
FILES = (".jsonl", ".json", ".csv", ".parquet")
LOSS = ("divergence", "loss_support", "loss_top_k", "loss_tail", "stop_gradient", "distillation_coef", "beta")
TRAINING = ("learning_rate", "lr_scheduler_type", "temperature", "max_completion_length", "num_generations", "seed")
WHOLE = """\
from transformers import pipeline

chat = pipeline("text-generation", model={place!r})
question = [{{"role": "user", "content": "What is a comet?"}}]
print(chat(question, max_new_tokens=128, return_full_text=False)[0]["generated_text"])
"""
ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, pipeline

model = AutoPeftModelForCausalLM.from_pretrained({place!r})  # loads its base model too
chat = pipeline("text-generation", model=model.merge_and_unload(), tokenizer=AutoTokenizer.from_pretrained({place!r}))
question = [{{"role": "user", "content": "What is a comet?"}}]
print(chat(question, max_new_tokens=128, return_full_text=False)[0]["generated_text"])
"""


def model_card(
    session: Mapping[str, Any],
    *,
    name: str,
    place: str,
    trained: str,
    is_adapter: bool,
    step: int,
    log: Sequence[Mapping[str, Any]],
    tags: Sequence[str],
    paper: Mapping[str, str],
    data: str | None = None,
) -> str:
    """The text of a card. The privileged context is not in it: a card is made to be shared.

    Args:
        session: what the run log says of a run; see `opd_trl.trainers.monitoring.describe_session`.
        name: of the model.
        place: folder or hub id to load it from.
        trained: which weights were trained, in words.
        is_adapter: is it an adapter, and not a whole model?
        step: optimizer steps so far.
        log: the lines that the trainer has logged.
        tags: for the hub.
        paper: of the method: `title`, `id`, `citation`.
        data: name of the data set; None: not known.
    """
    base = session["student"] or ""
    head = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        base_model=base if is_hub_id(base) else None,
        datasets=[data] if data and is_hub_id(data) else None,
        model_name=name,
        tags=["generated_from_trainer", *tags],
    )
    config = session["config"]
    rows = {
        "trained from": without_path(base) or "a model in memory",
        "teacher": ", ".join(map(in_words, session["teachers"].values())),
        "the teacher alone reads": "a privileged context, which is not part of this card" if reads(config) else None,
        "method": session["method"],
        "weights": trained,
        "data": without_path(data or ""),
        "loss": settings(config, LOSS),
        "training": f"{step} steps; {settings(config, TRAINING)}",
        "hardware": f"{session['processes']} process{'es' * (session['processes'] > 1)}, {session['device']}",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items() if value)
    versions = ", ".join(f"{key} {value}" for key, value in session["versions"].items())
    return f"""\
---
{head.to_yaml()}
---

# {name}

A student that was trained on its own text, each token of it scored by a teacher: {session["trainer"]} of opd_trl.
{"This folder holds a LoRA adapter; the base model is loaded beside it." * is_adapter}

## Use it

```python
{(ADAPTER if is_adapter else WHOLE).format(place=place)}```

In a terminal, beside the model before training: `opd-trl chat {place}`.

## How it was trained

| | |
|---|---|
{table}
Settings, curves and warnings of the run are in `run_log/` of its output folder: `opd-trl report` shows them.

## Figures

{figures(log)}

They are of the training itself. How good the answers are says `opd-trl eval`.

Versions: {versions}.

## Cite

The method ([{paper["title"]}](https://arxiv.org/abs/{paper["id"]})):

```bibtex
{paper["citation"].strip()}
```
"""


def is_hub_id(name: str) -> bool:
    """Does it look like `owner/name`, and not like a path or a file?

    >>> is_hub_id("openai/gsm8k"), is_hub_id("data/train.jsonl"), is_hub_id("./data")
    (True, False, False)
    """
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith(FILES)


def in_words(teacher: Any) -> str:
    """What the run log says of a teacher, in a cell of a table."""
    if not isinstance(teacher, dict):
        return without_path(str(teacher))
    return ", ".join(f"{key}: {without_path(str(value))}" for key, value in teacher.items())


def without_path(name: str) -> str:
    """A name of the hub as it is; of a path of this machine, which nobody else has, its last part.

    >>> without_path("Qwen/Qwen3-1.7B"), without_path("/home/me/models/mine")
    ('Qwen/Qwen3-1.7B', 'mine (local)')
    """
    return f"{PurePath(name).name} (local)" if name.startswith(("/", ".", "~")) else name


def reads(config: Mapping[str, Any]) -> bool:
    """Does the teacher read a privileged context, as far as the settings say?"""
    names = ("privileged_context", "privileged_context_file", "privileged_builder")
    return any(config.get(name) for name in names)


def settings(config: Mapping[str, Any], names: Sequence[str]) -> str:
    """Settings and their values, in a cell of a table.

    >>> settings({"beta": 0.0, "loss_tail": "drop", "seed": None}, ["loss_tail", "beta", "seed"])
    '`loss_tail: drop`, `beta: 0.0`'
    """
    return ", ".join(f"`{name}: {config[name]}`" for name in names if config.get(name) is not None)


def figures(log: Sequence[Mapping[str, Any]]) -> str:
    """First and last value of the figures that say whether it learned, as a table."""
    lines = [line for line in log if DIVERGENCE in line]
    if not lines:
        return "None was logged."
    names = [DIVERGENCE, "reward", "completions/mean_length", "entropy"]
    held_out = [line for line in log if any(key.startswith("held_out/") for key in line)]
    rows = [(name, lines) for name in names if name in lines[0] and name in lines[-1]]
    rows += [(name, held_out) for name in (held_out[-1] if held_out else ()) if name.startswith("held_out/")]
    table = "| figure | first | last |\n|---|---|---|\n"
    for name, found in rows:
        first, last = (f"{line[name]:.4g} (step {line['step']})" for line in (found[0], found[-1]))
        table += f"| `{name}` | {first} | {last} |\n"
    return table.rstrip()
