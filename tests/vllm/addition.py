"""Two-digit addition with written-out steps, `34+58=` -> `4+8=12,3+5+1=9:92`: a teacher is trained in a minute."""

import random
from pathlib import Path

import torch
from datasets import Dataset

from tests import tiny


MAX_ANSWER = 20  # tokens of 9+9=18,9+9+1=19:198 and the end
PAIRS = [(a, b) for a in range(10, 100) for b in range(10, 100)]
random.Random(0).shuffle(PAIRS)
HELD_OUT, TRAINING = PAIRS[:200], PAIRS[200:]


def prompt(a: int, b: int) -> str:
    return f"{a}+{b}="


def answer(a: int, b: int) -> str:
    """The steps, the units first, and the sum after a colon.

    >>> answer(34, 58)
    '4+8=12,3+5+1=9:92'
    """
    units = a % 10 + b % 10
    carry = units // 10
    return f"{a % 10}+{b % 10}={units},{a // 10}+{b // 10}+{carry}={a // 10 + b // 10 + carry}:{a + b}"


def dataset() -> Dataset:
    """The training prompts, without any answer."""
    return Dataset.from_dict({"prompt": [prompt(*pair) for pair in TRAINING]})


def train_teacher(
    teacher: Path, student: Path, *, steps: int = 150, student_steps: int = 50, text: str | None = None
) -> None:
    """Train on right answers; save the model after `student_steps` as the student, the last one as the teacher.

    `text` is learned by heart beside them.
    """
    model, tokenizer, draw = build(), tiny.build_tokenizer(), random.Random(1)
    text_ids = None if text is None else tokenizer(text, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10, 3 * (1 - step / steps))
    )
    for step in range(1, steps + 1):
        texts = [prompt(*pair) + answer(*pair) + tiny.END for pair in draw.choices(TRAINING, k=256)]
        batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, : len(prompt(10, 10))] = -100
        model(**batch, labels=labels).loss.backward()
        if text_ids is not None:
            model(input_ids=text_ids, labels=text_ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        for path in [student] * (step == student_steps) + [teacher] * (step == steps):
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)


def build():
    """A Qwen3 of 457,000 parameters."""
    return tiny.build_model(hidden_size=128, num_hidden_layers=3, head_dim=32, initializer_range=0.05)


@torch.no_grad()
def accuracy(model, tokenizer) -> float:
    """Share of the held-out sums that the model writes out right, step by step, with greedy decoding."""
    batch = tokenizer([prompt(*pair) for pair in HELD_OUT], return_tensors="pt").to(model.device)
    ids = model.eval().generate(
        **batch, max_new_tokens=MAX_ANSWER, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    texts = tokenizer.batch_decode(ids[:, batch["input_ids"].size(1) :], skip_special_tokens=True)
    return sum(text == answer(*pair) for text, pair in zip(texts, HELD_OUT, strict=True)) / len(HELD_OUT)
