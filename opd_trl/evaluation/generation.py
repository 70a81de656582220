"""Answers of a model to prompts, with transformers."""

from collections.abc import Callable
from typing import Any

import torch


@torch.no_grad()
def greedy_answers(
    model,
    tokenizer,
    prompts: list[list[dict[str, Any]]],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Decode one greedy answer per conversational prompt; the model's mode is given back as it was.

    Args:
        model: a causal language model, PEFT or plain.
        tokenizer: with a chat template; padded on the left here, whatever its own setting.
        prompts: messages each.
        max_new_tokens: longest answer in tokens.
        batch_size: prompts decoded together.
        progress: called with the number of prompts done after each batch.

    Returns:
        the answers, special tokens removed.
    """
    was_training, answers = model.training, []
    model.eval()
    try:
        for start in range(0, len(prompts), batch_size):
            batch = tokenizer.apply_chat_template(
                prompts[start : start + batch_size],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
                padding=True,
                tokenizer_kwargs={"padding_side": "left"},
            ).to(model.device)
            ids = model.generate(
                **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
            answers += tokenizer.batch_decode(ids[:, batch["input_ids"].size(1) :], skip_special_tokens=True)
            progress(len(answers))
    finally:
        model.train(was_training)
    return answers
