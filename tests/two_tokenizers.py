"""Tokenizers of several families, trained here on a real text and on sentences in several scripts."""

import json
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests import tiny


SCRIPTS = [
    "The quick brown fox, 12 plus 345 is 357.",
    "Ein naïver Gruß: Äpfel, Öl und Übermut kosten 3,50 €.",
    "Съешь же ещё этих мягких французских булок.",
    "天地玄黃宇宙洪荒 日本語の文章です。",
    "नमस्ते दुनिया",
    "مرحبا بالعالم",
    "😀👍🏽 fine  two spaces\n\tand a tab\n\n",
    "def f(x):\n    return x ** 2\n",
]
PAD, END = "<pad>", "</s>"
KINDS = ("byte-level", "byte-level 2", "unigram", "llama", "characters", "lower case", "normal form", "unknown")


def corpus() -> list[str]:
    licence = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
    return licence.split("\n\n") + SCRIPTS * 8


@cache
def build(kind: str) -> PreTrainedTokenizerFast:
    """One of `KINDS`: the last three change a text, or do not know a part of it."""
    if kind == "characters":
        tokenizer = tiny.build_tokenizer()
        return tokenizer
    backend = byte_level(600 if kind == "byte-level" else 400) if kind.startswith("byte-level") else sentence(kind)
    end = "<|end|>" if kind.startswith("byte-level") else END
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=PAD, padding_side="left")
    if not kind.startswith("byte-level"):
        fast.unk_token = "<unk>"
    fast.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}" + end + "\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    return fast


def byte_level(size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [PAD, "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def sentence(kind: str) -> Tokenizer:
    """A Unigram of SentencePiece's kind with byte fallback; `llama` is a BPE with its normaliser and its decoder."""
    special, options = [PAD, END, "<unk>"], {"show_progress": False, "vocab_size": 500}
    if kind == "llama":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(special_tokens=special, limit_alphabet=120, **options)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace()] if kind != "unknown" else [decoders.Metaspace()]
        )
        changes = {"lower case": normalizers.Lowercase(), "normal form": normalizers.NFKC()}
        if kind in changes:
            tokenizer.normalizer = changes[kind]
        trainer = trainers.UnigramTrainer(special_tokens=special, unk_token="<unk>", **options)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer if kind == "unknown" else with_bytes(tokenizer)


def with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Put the 256 single bytes behind the special tokens, where SentencePiece has them."""
    saved = json.loads(tokenizer.to_str())
    model, names = saved["model"], [f"<0x{byte:02X}>" for byte in range(256)]
    if model["type"] == "Unigram":
        model["vocab"] = model["vocab"][:3] + [[name, -20.0] for name in names] + model["vocab"][3:]
    else:
        old = sorted(model["vocab"], key=model["vocab"].get)
        model["vocab"] = {piece: i for i, piece in enumerate([*old[:3], *names, *old[3:]])}
    model["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(saved))
