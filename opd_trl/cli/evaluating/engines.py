"""The engine that generates, and a scorer of texts for the retention suite."""

from pathlib import Path
from typing import Any

from ...models.sampling import Engine


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model.

    Raises:
        ValueError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(_unloadable(model, error)) from None


def load_engine(
    name: str, model: str, tokenizer: Any, *, adapter: str | None, dtype: str, batch_size: int | None
) -> Engine:
    """Load the model.

    Args:
        name: "transformers" or "vllm".
        model: folder or hub id.
        tokenizer: its own.
        adapter: folder of a LoRA adapter, or None.
        dtype: "auto" (as saved), "float32", "bfloat16", "float16".
        batch_size: answers at once; None for the engine's default.

    Raises:
        ValueError: it cannot be loaded.
        ImportError: vLLM is asked for and not installed.
    """
    sizes = {} if batch_size is None else {"batch_size": batch_size}
    if name == "vllm":
        from ...models.vllm_engine import VLLMEngine

        return VLLMEngine(model, adapter=adapter, dtype=dtype, **sizes)
    from ...models.transformers_engine import TransformersEngine

    return TransformersEngine(load_model(model, adapter=adapter, dtype=dtype), tokenizer, **sizes)


def load_model(model: str, *, adapter: str | None, dtype: str) -> Any:
    """A causal language model on the first GPU, or on the CPU; with its adapter, not merged."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ValueError(_unloadable(model, error)) from None
    if adapter is not None:
        from peft import PeftModel

        try:
            loaded = PeftModel.from_pretrained(loaded, adapter)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"--adapter {adapter} does not fit {model}: {_short(error)}.") from None
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu")


def make_scorer(model: Any):
    """Log-probabilities of given ids `(B, L)` under a model, without a [tokens, vocabulary] tensor."""
    import torch

    from ...models.forward import completion_hidden_states, read_head, scatter, token_log_probs

    head = read_head(model)

    @torch.no_grad()
    def score(ids, mask):
        ids, mask = ids.to(model.device), mask.to(model.device)
        predicted = mask[:, 1:].bool()
        hidden, _ = completion_hidden_states(model, ids, mask, ids.size(1) - 1, multimodal={})
        log_probs, _ = token_log_probs(hidden[predicted], head, ids[:, 1:][predicted])
        return torch.nn.functional.pad(scatter(log_probs, predicted), (1, 0)).cpu()

    return score


def _unloadable(model: str, error: Exception) -> str:
    place = "" if Path(model).is_dir() else " There is no such folder, so it is taken for a hub id."
    return f"--model {model} cannot be loaded: {_short(error)}.{place}"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
