"""A tiny student that really calls a tool, and trainers on it."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version

from opd_trl.data.toy_calculator import LEARNED, Calculator, build_tokenizer, manual, question, trace
from opd_trl.data.toy_task import build_model
from tests.trainers.build import opsd_trainer


if Version(transformers.__version__) < Version("5.13"):  # it reads no calls by a `response_template`
    pytest.skip("the toy's calls are read from transformers 5.13 on", allow_module_level=True)

PROBLEMS = [(3, ("twin", "back")), (4, ("next",)), (1, ("flip", "flip", "twin")), (7, ())]


def press(key: str, number: int) -> str:
    """Press a key.

    Args:
        key: The key.
        number: The number.
    """
    calculator = Calculator()
    calculator.reset(json.dumps(LEARNED))
    return calculator.press(key, number)


def save_caller(folder: Path) -> str:
    """Save a student that knows the traces of `PROBLEMS` by heart, and return the path."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=0)
    texts = [
        tokenizer.apply_chat_template([*question(*p), *trace(*p, LEARNED)], tools=[press], tokenize=False)
        for p in PROBLEMS
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def rows(**columns) -> Dataset:
    same = {"keys": json.dumps(LEARNED), "privileged_context": manual(LEARNED)} | columns
    return Dataset.from_list([{"prompt": question(*p)} | same for p in PROBLEMS])


HOW = {"tools": {"tools": [press]}, "environment": {"environment_factory": Calculator}}
FULL = {"loss_support": "full", "max_completion_length": 64, "disable_dropout": True}
FULL |= {"temperature": 0.5, "loss_temperature": 1.0}


def agent(tmp_path, student, how="environment", *, dataset=None, **options):
    """An OPSDTrainer, without adapters, whose student may press keys."""
    how = HOW[how] if isinstance(how, str) else how
    dataset = rows() if dataset is None else dataset
    return opsd_trainer(tmp_path, student, dataset=dataset, lora=False, trainer_options=how, **FULL | options)
