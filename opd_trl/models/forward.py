"""From a causal language model to the hidden states of the completion and the head that reads them."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..losses.head import Head
from ..losses.next_token import NextToken
from .multimodal import PER_TOKEN_KEYS
from .own_forward import logit_transform, name_of, run_to_head
from .packing import packed_hidden_states
from .prefix_cache import PrefixCache
from .sequences import completion_positions, cut, left_padding, longest_row, turn


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper; adapters stay active in its layers."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def window_of(config: Any) -> int | None:
    """Longest sequence that a model reads, in tokens; None where it has no limit.

    YaRN and its like stretch the positions of training without a word in `max_position_embeddings`.
    """
    config = config.get_text_config()
    window = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if window is None or not rope.get("original_max_position_embeddings"):
        return window
    return max(window, int((rope.get("factor") or 1) * rope["original_max_position_embeddings"]))


def read_head(model: nn.Module) -> Head:
    """Read the head of an unwrapped model: which weights are active (PEFT), what the model does to their logits."""
    model = causal_lm(model)
    lm_head, transform = model.get_output_embeddings(), logit_transform(model)
    return Head(
        weight=lm_head.weight,
        bias=getattr(lm_head, "bias", None),
        logit_scale=transform.logit_scale,
        final_logit_softcapping=transform.final_logit_softcapping,
    )


def completion_hidden_states(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_completion_tokens: int,
    *,
    router_loss: bool = False,
    multimodal: dict[str, Any],
    prefix: PrefixCache | None = None,
    packed: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Run the model once, without its head.

    Rows with padding at the left are turned: a causal model never sees what stands behind a token, so the numbers are
    those of each row alone, whatever the model knows of positions and masks. What is padding in all rows is cut off.

    Args:
        model: unwrapped model (PEFT or plain).
        input_ids, attention_mask: `(B, P + T)`, prompt left-padded, completion right-padded.
        num_completion_tokens: T.
        router_loss: also return the load-balancing loss of a mixture of experts.
        multimodal: entries of `MULTIMODAL_KEYS` in the batch.
        prefix: of the text that all rows begin with, which is not read again; text alone, without gradients.
        packed: compute once what several rows begin with; text alone, where `packing.can_pack` says that it can be.

    Returns:
        hidden states `(B, T, H)` as the head takes them, at the positions that predict the completion tokens, and the
        scalar router loss or None.

    Raises:
        ValueError: a router loss is wanted that the model does not have.
    """
    model = causal_lm(model)
    if "pixel_values" in multimodal and "pixel_values" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"the batch has images, and {type(model).__name__} reads text alone: it would score the answers without "
            "the pictures. Use a vision-language model."
        )
    per_token = {"input_ids": input_ids, "attention_mask": attention_mask}
    per_token |= {key: multimodal[key] for key in PER_TOKEN_KEYS if key in multimodal}
    padding, width = left_padding(attention_mask), longest_row(attention_mask).item()
    per_token = {key: turn(x, padding)[:, :width] for key, x in per_token.items()}
    start = 0 if prefix is None else len(prefix.ids)
    per_token["input_ids"] = per_token["input_ids"][:, start:]
    first = attention_mask.size(1) - num_completion_tokens - 1 - padding - start
    if packed:
        rows = cut(per_token["input_ids"], attention_mask.sum(-1) - start)
        return completion_positions(packed_hidden_states(model, rows, prefix), first, num_completion_tokens), None
    options = {"use_cache": False} if prefix is None else prefix.inputs(len(input_ids))
    if router_loss:
        options["output_router_logits"] = True
    hidden_states, outputs = run_to_head(model, **options, **{**multimodal, **per_token})
    aux_loss = getattr(outputs, "aux_loss", None) if router_loss else None
    if router_loss and not isinstance(aux_loss, Tensor):
        raise ValueError(f"{name_of(model)} has no router loss. Set router_aux_loss_coef: 0.")
    return completion_positions(hidden_states, first, num_completion_tokens), aux_loss


def has_router_loss(model: nn.Module) -> bool:
    """Has the forward of the model such an option, and the model experts? Dense models of such a family have none."""
    model = causal_lm(model)
    if "output_router_logits" not in inspect.signature(model.forward).parameters:
        return False
    return any(getattr(x, "num_experts", None) for x in (model, model.config.get_text_config()))


def vocabulary_rows(config: Any) -> int:
    """The ids that a model knows, from its text configuration; its head may be padded with further rows."""
    return getattr(config, "unpadded_vocab_size", None) or config.vocab_size


def token_log_probs(hidden_states: Tensor, head: Head, ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities `(N,)` of one token each, and entropies `(N,)`, from hidden states `(N, H)`.

    `options` are further ones of `NextToken.log_probs`: `temperature`, `chunk_size`.
    """
    log_probs, _, entropy = NextToken(hidden_states, head).log_probs(ids=ids.unsqueeze(-1), **options)
    return log_probs.squeeze(-1), entropy


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Put `(N,)` values back at the True positions of `mask` `(B, T)`, zero elsewhere; keeps the graph."""
    return torch.zeros_like(mask, dtype=values.dtype).masked_scatter(mask, values)
