"""The toy task (five digits added up modulo six, step by step) and a tiny Qwen3 with random weights that learns it.

Steps make it easy (each is one of 36 facts), and without them it stays at one in six: a sum modulo six is among the
hardest things for a small transformer to read off at once. So there is something for a reward to bring out.
"""

import hashlib
import itertools
import os
import random
import string
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..durable import atomically, naming
from .files import Row, check_free, write_jsonl
from .splits import split_rows


MODULUS, DIGITS = 6, 5
#: Shares of the 7,776 sums: what each stage trains on, and what none of them sees.
TOY_PARTS = {"sft": 0.34, "rlvr": 0.3, "opd": 0.3, "test": 0.06}
#: Share of the SFT completions that write the steps out; the others state the answer straight away. A student trained
#: on both mostly guesses, though it can do better.
WORKED_SHARE = 0.25


def steps(digits: tuple[int, ...]) -> str:
    """The written-out sum modulo six, from left to right: each step in base six, the carry first, then dropped.

    The carry is what makes the facts quick to learn: a digit modulo six says nothing about either of its summands
    alone, and training stands still for hundreds of steps.

    >>> steps((4, 3, 0, 2, 5))
    '4+3=11,1+0=01,1+2=03,3+5=12'
    """
    totals = [total % MODULUS for total in itertools.accumulate(digits)]
    return ",".join(
        f"{a}+{b}={(a + b) // MODULUS}{(a + b) % MODULUS}" for a, b in zip(totals, digits[1:], strict=False)
    )


def addition_row(digits: tuple[int, ...], *, worked: bool = True) -> Row:
    r"""One sum, with all that any stage needs.

    Returns:
        `prompt` and `completion` (messages; with the steps or without), `answer`, and `solution` (the steps and the
        answer: privileged context).

    Example:
        >>> row = addition_row((4, 3, 0, 2, 5))
        >>> row["prompt"][0]["content"], row["completion"][0]["content"]
        ('4+3+0+2+5 mod 6', '4+3=11,1+0=01,1+2=03,3+5=12:\\boxed{2}')
        >>> addition_row((4, 3, 0, 2, 5), worked=False)["completion"][0]["content"]
        '\\boxed{2}'
        >>> row["answer"], row["solution"]
        ('2', '4+3=11,1+0=01,1+2=03,3+5=12:2')
    """
    answer = str(sum(digits) % MODULUS)
    text = (f"{steps(digits)}:" if worked else "") + f"\\boxed{{{answer}}}"
    return {
        "prompt": [{"role": "user", "content": "+".join(map(str, digits)) + f" mod {MODULUS}"}],
        "completion": [{"role": "assistant", "content": text}],
        "answer": answer,
        "solution": f"{steps(digits)}:{answer}",
    }


def addition(seed: int) -> dict[str, list[Row]]:
    """All sums of five digits in `TOY_PARTS`, which are disjoint by the hash of the prompt.

    The parts are the same for every seed, so that no seed trains on another one's test set; the seed sets their order
    and which completions are worked. `completion` stands in `sft`, and in `opd` for who wants given text there.
    """
    draw = random.Random(seed)
    sums = itertools.product(range(MODULUS), repeat=DIGITS)
    rows = [addition_row(digits, worked=draw.random() < WORKED_SHARE) for digits in sums]
    draw.shuffle(rows)
    usual = ("prompt", "answer", "solution")
    keep = {"sft": ("prompt", "completion"), "opd": (*usual, "completion")}
    return {
        part: [{name: row[name] for name in keep.get(part, usual)} for row in rows_of_part]
        for part, rows_of_part in split_rows(rows, TOY_PARTS).items()
    }


class Task(NamedTuple):
    """A toy task: its name, its rows by part for a seed, its tokenizer, and how many layers its model has.

    Without a tokenizer it has no model of its own: it is for pretrained ones.
    """

    name: str
    rows: Callable[[int], dict[str, list[Row]]]
    tokenizer: Callable[[], Any] | None
    layers: int = 3


# `datasets` reads this head: one configuration per file. Its cache knows a folder by this head alone and would go on
# serving the rows of a file that was rewritten: the hash in the description makes it look again.
CARD = """\
---
configs:
{configs}---
# A toy task: {task}

Written by `opd-trl toy --task {task} --seed {seed}`: {counts}. No prompt is in two of the files.
"""


CONFIG = """\
- config_name: {part}
  data_files: {part}.jsonl
  description: sha256 {digest}
"""


def write(output: Path, task: Task, *, seed: int = 0, overwrite: bool = False) -> str:
    """Write the data, and its model, to `output`; return what was written. DataError: a file is in the way."""
    parts = task.rows(seed)
    card = output / "README.md"
    model_folder = [output / "model"] if task.tokenizer else []
    check_free(card, *model_folder, *(output / f"{part}.jsonl" for part in parts), overwrite=overwrite)
    output.mkdir(parents=True, exist_ok=True)
    model = f"; {write_model(output / 'model', task, seed=seed)}" if task.tokenizer else ""
    for part, rows in parts.items():
        write_jsonl(output / f"{part}.jsonl", rows)
    counts = ", ".join(f"{len(rows)} rows in {part}.jsonl" for part, rows in parts.items())
    configs = "".join(CONFIG.format(part=part, digest=sha256(output / f"{part}.jsonl")) for part in parts)
    with atomically(card) as file:
        file.write(CARD.format(configs=configs, task=task.name, seed=seed, counts=counts))
    return f"Wrote {output}: {counts}{model}."


def write_model(folder: Path, task: Task, *, seed: int) -> str:
    """Write a model with random weights for the task to `folder`; return what it is, in words."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".model-") as scratch:
        with naming(folder):
            parameters = save(Path(scratch), seed=seed, tokenizer=task.tokenizer(), layers=task.layers)
        folder.mkdir(exist_ok=True)
        for file in Path(scratch).iterdir():
            os.replace(file, folder / file.name)
    return f"a model of {parameters:,} parameters in {folder}"


def sha256(file: Path) -> str:
    """SHA-256 of the content of a file, 64 hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


PAD, END = "<|pad|>", "<|end|>"
TURNS = ("<|system|>", "<|user|>", "<|assistant|>")
# One token, as it would be in a real vocabulary: what comes inside is the task.
BOX = "\\boxed{"
SPECIAL = (PAD, END, *TURNS, BOX)
# Pieces of two or more characters come first in the alternation.
PIECES = r"\\boxed\{|[\s\S]"
CHAT_TEMPLATE = (
    "{%- for m in messages -%}<|{{ m['role'] }}|>"
    "{%- if m['role'] == 'assistant' -%}{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}"
    "{%- else -%}{{ m['content'] + '<|end|>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def build_tokenizer(characters: Iterable[str] = string.printable) -> Any:
    """One id per character, by default the printable ones of ASCII, and those of `SPECIAL`; others read `?`.

    The template knows system, user and assistant turns and marks what the assistant wrote, for TRL's
    `assistant_only_loss`. The end of a turn is EOS, and it is not the padding token.
    """
    return tokenizer_of_pieces([*SPECIAL, *characters], PIECES, turns=TURNS, template=CHAT_TEMPLATE)


def tokenizer_of_pieces(vocabulary: Iterable[str], pattern: str, *, turns: Sequence[str], template: str) -> Any:
    """A tokenizer with one id for each piece that `pattern` cuts a text into; others read `?`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(turns),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    fast.chat_template = template
    return fast


def build_model(tokenizer: Any, *, seed: int, layers: int = 3, hidden_size: int = 128) -> Any:
    """A Qwen3 of a few layers; of three with hidden size 128, about 0.46 million parameters, float32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def save(folder: Path, *, seed: int, tokenizer: Any = None, layers: int = 3) -> int:
    """Save model and tokenizer, by default the one of sums, to `folder`; return the number of parameters."""
    tokenizer = build_tokenizer() if tokenizer is None else tokenizer
    model = build_model(tokenizer, seed=seed, layers=layers)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


ADDITION = Task("addition", addition, build_tokenizer)
