"""Models of known shapes with random weights and a tokenizer of single characters: nothing is downloaded."""

from pathlib import Path
from typing import Any

import torch
from children import Children, Send

from opd_trl.data import toy_task


# What Qwen3-0.6B and Qwen3-1.7B say in their config.json.
QWEN3 = {
    "vocab_size": 151936,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000},
    "tie_word_embeddings": True,
}
TINY = QWEN3 | {
    "vocab_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
}
SHAPES = {
    "full": {
        "student": QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072},
        "teacher": QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144},
    },
    "small": {
        "student": TINY | {"hidden_size": 32, "intermediate_size": 64},
        "teacher": TINY | {"hidden_size": 48, "intermediate_size": 96},
    },
}
# Ids below this are special; random completions are drawn from those above.
FIRST_PLAIN_ID = len(toy_task.SPECIAL)


def build_tokenizer(vocab_size: int) -> Any:
    """The tokenizer of the toy task with an id for every row of the head: a Unicode character each."""
    characters = [chr(i) for i in range(32, 32 + 2 * vocab_size) if not 0xD800 <= i < 0xE000]
    tokenizer = toy_task.build_tokenizer(characters[: vocab_size - FIRST_PLAIN_ID])
    tokenizer.model_max_length = QWEN3["max_position_embeddings"]
    return tokenizer


def save(send: Send, folder: Path, shape: dict[str, Any], device: str, seed: int) -> None:
    """In a child: save a model of a shape in bfloat16, its weights drawn on the device, and the tokenizer."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(seed)
    tokenizer = build_tokenizer(shape["vocab_size"])
    config = Qwen3Config(
        **shape, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    send(sum(parameter.numel() for parameter in model.parameters()))


def prepare(children: Children, home: Path, size: str, device: str) -> dict[str, str]:
    """Paths of student and teacher, written where they are missing."""
    paths = {}
    for seed, (name, shape) in enumerate(SHAPES[size].items()):
        folder = home / f"{name}-{size}"
        if not (folder / "tokenizer.json").is_file():
            children.call(save, folder, shape, device, seed, name=f"save-{name}", seconds=240)
        paths[name] = str(folder)
    return paths
