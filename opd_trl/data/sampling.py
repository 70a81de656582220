"""Completions of a model to prompts, with transformers."""

from collections.abc import Callable
from typing import Any

from ..models.sampling import Completion, Sampling
from .files import DataError


def load_model(name: str, *, revision: str | None = None, dtype: str = "auto", device: str | None = None) -> Any:
    """A causal language model and its tokenizer, ready to generate.

    Args:
        name: hub id or path.
        revision: branch, tag or commit.
        dtype: as in `from_pretrained`.
        device: where to; default: the accelerator where there is one.

    Raises:
        DataError: it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the model {name!r} cannot be loaded: {' '.join(str(error).split())}. Give a folder with a saved model, "
            "or a hub id such as Qwen/Qwen3-8B that this machine can reach."
        ) from error
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer


def make_sampler(
    model: Any,
    tokenizer: Any,
    sampling: Sampling,
    *,
    template_kwargs: dict[str, Any] | None = None,
) -> Callable[[list, int], list[Completion]]:
    """A function of prompts (messages or texts) and a seed that writes one completion each, all in one batch.

    Args:
        model, tokenizer: as `load_model` returns them.
        sampling: how tokens are drawn.
        template_kwargs: of the chat template, e.g. `enable_thinking`.

    Raises:
        DataError: neither model nor tokenizer names an end token.
    """
    from ..models.transformers_engine import TransformersEngine

    try:
        engine = TransformersEngine(model, tokenizer)
    except ValueError as error:
        raise DataError(str(error)) from error

    def sample(prompts: list, seed: int) -> list[Completion]:
        ids = [token_ids(tokenizer, prompt, template_kwargs) for prompt in prompts]
        return engine.generate(ids, sampling, [seed])

    return sample


def token_ids(tokenizer: Any, prompt: str | list[dict[str, Any]], template_kwargs: dict[str, Any] | None) -> list[int]:
    """A prompt as the model reads it.

    Raises:
        DataError: messages, and the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    if tokenizer.chat_template is None:
        raise DataError("the tokenizer has no chat template, and the prompts are messages. Use an instruct model.")
    return tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=True, **template_kwargs or {}
    )["input_ids"]
