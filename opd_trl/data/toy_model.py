"""A tiny Qwen3 with random weights and a tokenizer of single characters, with a chat template; never downloaded."""

import string
from pathlib import Path
from typing import Any


PAD, END = "<|pad|>", "<|end|>"
TURNS = ("<|system|>", "<|user|>", "<|assistant|>")
# One token, as it would be in a real vocabulary: what comes inside is the task.
BOX = "\\boxed{"
# Pieces of two or more characters come first in the alternation.
PIECES = r"\\boxed\{|[\s\S]"
CHAT_TEMPLATE = (
    "{%- for m in messages -%}<|{{ m['role'] }}|>"
    "{%- if m['role'] == 'assistant' -%}{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}"
    "{%- else -%}{{ m['content'] + '<|end|>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def build_tokenizer() -> Any:
    """One id per printable ASCII character, one for `\\boxed{`, and five special tokens; other characters read `?`.

    The template knows system, user and assistant turns and marks what the assistant wrote, for TRL's
    `assistant_only_loss`. The end of a turn is EOS, and it is not the padding token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([PAD, END, *TURNS, BOX, *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(TURNS),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: Any, *, seed: int) -> Any:
    """A Qwen3 of three layers, hidden size 128, about 0.46 million parameters, float32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
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


def save(folder: Path, *, seed: int) -> int:
    """Save model and tokenizer to `folder`; return the number of parameters."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
