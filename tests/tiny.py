"""A tiny Qwen3-shaped student and a character tokenizer with a chat template; built, never downloaded."""

import string
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}[think]{% endif %}{% endif %}"
)


def build_tokenizer(
    *, reverse: bool = False, pad_token: str | None = PAD, swap: tuple[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """One id per printable ASCII character and three special tokens; `reverse` gives the characters other ids.

    `swap`: two tokens, each of which gets the other's id.
    """
    characters = string.printable[::-1] if reverse else string.printable
    vocab = {token: i for i, token in enumerate([PAD, START, END, *characters])}
    if swap:
        one, other = swap
        vocab[one], vocab[other] = vocab[other], vocab[one]
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=pad_token,
        additional_special_tokens=[START],
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(*, seed: int = 0, vocab_size: int = 103, hidden_size: int = 32, **options) -> Qwen3ForCausalLM:
    """A Qwen3 of two layers with random weights, sharp enough for its distributions to differ."""
    torch.manual_seed(seed)
    defaults = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    sizes = {"vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": 2 * hidden_size}
    config = Qwen3Config(**sizes, **defaults | options)
    return Qwen3ForCausalLM(config)


def save(folder: Path, *, tokenizer=None, **options) -> str:
    """Save a tiny model with its tokenizer and return the path."""
    build_model(**options).save_pretrained(folder)
    (tokenizer or build_tokenizer()).save_pretrained(folder)
    return str(folder)


def save_reader(folder: Path, text: str, *, steps: int = 60, tokenizer=None, **options) -> str:
    """Save a tiny model that has learned a text by heart, with norms of their own, and return the path."""
    model, tokenizer = build_model(**options), tokenizer or build_tokenizer()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.3, 2.0)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def questions(n: int = 8, *, conversational: bool = True, **columns) -> Dataset:
    """Prompts of different lengths; extra columns hold one value per row, or one value for all."""
    texts = [f"{'a' * (i % 4 + 1)} plus {i}?" for i in range(n)]
    prompts = [[{"role": "user", "content": text}] for text in texts] if conversational else texts
    filled = {name: value if isinstance(value, list) else [value] * n for name, value in columns.items()}
    return Dataset.from_dict({"prompt": prompts, **filled})
