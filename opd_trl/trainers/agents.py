"""Rollouts over several turns, with tools or an environment: what is refused, how deep they go, whose token it is."""

import copy
from typing import Any

from torch import Tensor
from trl.chat_template_utils import (
    add_response_schema,
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    supports_tool_calling,
)

from ..data.row_checks import RowError
from .config.config_checks import say_once
from .config.opd_config import OPDConfig
from .input_checks import tokenizer_of


KNOWN = "Take the tokenizer of a model that was trained to call tools (Qwen3, Llama 3.1 and later ones)"


def check_tools(args: OPDConfig, processing_class, options: dict[str, Any]) -> None:
    """Refuse tools that the student's chat template cannot render or whose calls cannot be read, before a model loads.

    Args:
        args: of the trainer.
        processing_class: the student's.
        options: further ones of the trainer, `tools` and `environment_factory` among them.

    Raises:
        RowError: with the remedy.
    """
    if not options.get("tools") and options.get("environment_factory") is None:
        if args.tool_depth_start is not None:
            say_once("tool_depth_start has no effect here. It needs tools or an environment_factory.")
        return
    if not supports_tool_calling(processing_class):
        raise RowError(
            "the student's chat template does not render calls of tools and their answers, and there are tools",
            f"{KNOWN}, or give its chat_template a part for tool_calls and for turns of the role tool.",
        )
    # TRL sets what reads the calls where it knows the template; it is tried on a copy.
    tokenizer = tokenizer_of(processing_class)
    if getattr(tokenizer, "response_template", None) is None and getattr(tokenizer, "response_schema", None) is None:
        try:
            add_response_schema(copy.copy(processing_class))
        except ValueError:
            raise RowError(
                "nothing says how to read a call of a tool out of what the student writes",
                f"{KNOWN}, or set tokenizer.response_template (transformers' page on response parsing).",
            ) from None
    if not is_chat_template_prefix_preserving(processing_class):
        try:
            get_training_chat_template(processing_class)
        except ValueError:
            raise RowError(
                "the student's chat template writes a turn in another way once a tool has answered it, so what is "
                "trained on is not what was sampled",
                f"{KNOWN}, or write each turn in the template without looking at those behind it.",
            ) from None


def turns_allowed(args: OPDConfig, step: int, most: int) -> int:
    """Turns that a rollout of training may have at an optimizer step: k = min(k0 + floor(step / steps), most).

    Source: arXiv 2604.24005 (forward to backward).
    """
    return min(args.tool_depth_start + step // args.tool_depth_steps, most)


def check_tool_images(images: list[list[Any]]) -> None:
    """Raise ValueError where a tool has answered with an image, which the teacher would not see in its place."""
    if any(images):
        raise ValueError(
            "a tool has answered with an image: the teacher reads the pixels of prompts alone. Let the tool answer "
            "with text, such as a description of the image."
        )


def has_turns(trainer) -> bool:
    """Do rollouts take turns with something else: tools, an environment, a `rollout_func`?"""
    return bool(trainer.tools) or trainer.rollout_func is not None


def turns_of(batch: dict[str, Any]) -> Tensor | None:
    """The turn `(B, T)` int64 of each token of the student, from 1 on; 0 for what it did not write.

    None where nobody else has a part in the completions.

    >>> import torch
    >>> turns_of({"completion_mask": torch.ones(1, 6), "tool_mask": torch.tensor([[1, 1, 0, 0, 1, 0]])}).tolist()
    [[1, 1, 0, 0, 2, 0]]
    """
    if "tool_mask" not in batch:
        return None
    wrote = (batch["completion_mask"] * batch["tool_mask"]).bool()
    begins = wrote.clone()
    begins[:, 1:] &= ~wrote[:, :-1]
    return begins.cumsum(-1) * wrote
