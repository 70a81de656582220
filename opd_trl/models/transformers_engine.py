"""Generation with transformers, and the log-probabilities of given texts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, TextStreamer

from .forward import window_of
from .merged import merged_adapters
from .sampling import Completion, Sampling, derived_seed
from .sequences import left_pad


class TransformersEngine:
    """Completes prompts with a causal language model of transformers.

    The model's own generation settings (top-k, repetition penalty, ...) are dropped, but for its end tokens: nothing
    but the given sampling decides.

    Args:
        model: plain or PEFT, in evaluation mode from here on.
        tokenizer: its own.
        batch_size: prompts decoded together.
    """

    name = "transformers"

    def __init__(self, model: nn.Module, tokenizer, *, batch_size: int = 32) -> None:
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.end_ids = end_ids(model.generation_config.eos_token_id, tokenizer.eos_token_id)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_ids[0]
        inner = model.get_base_model() if hasattr(model, "peft_config") else model
        inner.generation_config = model.generation_config = GenerationConfig(
            eos_token_id=self.end_ids, pad_token_id=pad, bos_token_id=tokenizer.bos_token_id
        )
        self.pad_id = pad
        self.context_length = window_of(model.config)

    @torch.no_grad()
    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """An answer to each prompt of token ids, up to its end token; one seed for the batch is made of theirs."""
        return self._generate(prompts, sampling, seeds)

    @torch.no_grad()
    def stream(self, prompt: list[int], sampling: Sampling, seed: int, tell: Callable[[str], None]) -> Completion:
        """The answer to one prompt, whose text is told piece by piece as it is written."""
        return self._generate([prompt], sampling, [seed], streamer=Streamer(self.tokenizer, tell))[0]

    def _generate(self, prompts, sampling: Sampling, seeds: Sequence[int], **more: Any) -> list[Completion]:
        ids, mask = left_pad(prompts, pad_token_id=self.pad_id, device=self.model.device)
        options: dict[str, Any] = {"do_sample": sampling.temperature > 0, "max_new_tokens": sampling.max_new_tokens}
        if options["do_sample"]:
            options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        torch.manual_seed(derived_seed(*seeds))
        with merged_adapters(self.model):
            output = self.model.generate(input_ids=ids, attention_mask=mask, **options, **more)
        return [self._completion(row) for row in output[:, ids.size(1) :].tolist()]

    def _completion(self, ids: list[int]) -> Completion:
        length = next((i + 1 for i, token in enumerate(ids) if token in self.end_ids), None)
        kept = ids if length is None else ids[:length]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return Completion(text, len(kept), length is not None)


class Streamer(TextStreamer):
    """Tells the pieces of an answer, special tokens left out, as soon as they are whole words."""

    def __init__(self, tokenizer, tell: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.tell = tell

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.tell(text)


def end_ids(of_model: int | list[int] | None, of_tokenizer: int | None) -> list[int]:
    """Every id that ends an answer: those of the model's generation settings, and the tokenizer's.

    Raises:
        ValueError: there is none, so that no answer would ever end.

    Example:
        >>> end_ids([151645, 151643], 151645), end_ids(None, 2)
        ([151645, 151643], [2])
    """
    ids = of_model if isinstance(of_model, list) else [] if of_model is None else [of_model]
    found = list(dict.fromkeys([*ids, *([] if of_tokenizer is None else [of_tokenizer])]))
    if not found:
        raise ValueError("neither the model's generation_config nor its tokenizer has an eos_token. Set one of them.")
    return found


@torch.no_grad()
def answer_ids(
    model,
    tokenizer,
    prompts: list[list[dict[str, Any]]],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
    **sampling: float,
) -> list[list[int]]:
    """One answer per conversational prompt; the model's mode is given back as it was.

    Args:
        model: a causal language model, PEFT or plain.
        tokenizer: with a chat template; padded on the left here, whatever its own setting.
        prompts: messages each.
        max_new_tokens: longest answer in tokens.
        batch_size: prompts decoded together.
        progress: called with the number of prompts done after each batch.
        sampling: `temperature`, `top_p`; greedy without.

    Returns:
        the token ids of the answers, up to and with the end token.
    """
    was_training, answers, end = model.training, [], tokenizer.eos_token_id
    options = {"do_sample": True, "top_k": 0, **sampling} if sampling else {"do_sample": False}
    model.eval()
    try:
        with merged_adapters(model):
            for start in range(0, len(prompts), batch_size):
                batch = tokenizer.apply_chat_template(
                    prompts[start : start + batch_size],
                    add_generation_prompt=True,
                    return_tensors="pt",
                    return_dict=True,
                    padding=True,
                    tokenizer_kwargs={"padding_side": "left"},
                ).to(model.device)
                output = model.generate(
                    **batch, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, **options
                )
                rows = output[:, batch["input_ids"].size(1) :].tolist()
                answers += [ids[: ids.index(end) + 1] if end in ids else ids for ids in rows]
                progress(len(answers))
    finally:
        model.train(was_training)
    return answers


def greedy_answers(model, tokenizer, prompts: list[list[dict[str, Any]]], **options: Any) -> list[str]:
    """The texts of greedy answers, special tokens removed; options of `answer_ids`."""
    return tokenizer.batch_decode(answer_ids(model, tokenizer, prompts, **options), skip_special_tokens=True)


def make_sampler(
    model: Any, tokenizer: Any, sampling: Sampling, *, template_kwargs: dict[str, Any] | None = None
) -> Callable[[list, int], list[Completion]]:
    """A function of prompts (messages or texts) and a seed that writes one completion each, all in one batch.

    `template_kwargs` are of the chat template, e.g. `enable_thinking`. Raises ValueError where neither model nor
    tokenizer names an end token.
    """
    engine = TransformersEngine(model, tokenizer)

    def sample(prompts: list, seed: int) -> list[Completion]:
        ids = [token_ids(tokenizer, prompt, template_kwargs) for prompt in prompts]
        return engine.generate(ids, sampling, [seed])

    return sample


def token_ids(tokenizer: Any, prompt: str | list[dict[str, Any]], template_kwargs: dict[str, Any] | None) -> list[int]:
    """The token ids of a prompt, up to where the answer starts; raises ValueError for messages without a template."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template, and the prompts are messages. Use an instruct model.")
    return tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=True, **template_kwargs or {}
    )["input_ids"]
