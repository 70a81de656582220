"""From a causal language model to the hidden states of the completion and the head that reads them."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from ..losses.head import Head
from ..losses.next_token import NextToken
from .sequences import completion_positions


# Batch entries that a vision-language backbone takes besides ids and mask.
MULTIMODAL_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "pixel_attention_mask",
    "spatial_shapes",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
# Those of them that have an entry for each token.
PER_TOKEN_KEYS = ("token_type_ids", "mm_token_type_ids")


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
    """Read the head of an unwrapped model: which weights are active (PEFT), which logit conventions apply."""
    model = causal_lm(model)
    lm_head = model.get_output_embeddings()
    config = model.config.get_text_config()
    return Head(
        weight=lm_head.weight,
        bias=getattr(lm_head, "bias", None),
        logit_scale=logit_scale(config),
        final_logit_softcapping=getattr(config, "final_logit_softcapping", None),
    )


def logit_scale(config: Any) -> float:
    """Factor on the logits, under the names that the model families use; 1.0 where there is none.

    Cohere `logit_scale`, Muse `output_multiplier` and Falcon-H1 `lm_head_multiplier` multiply; Granite and MiniCPM3
    divide by `logits_scaling`, HyperCLOVA X multiplies by it.
    """
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / scaling


def completion_hidden_states(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_completion_tokens: int,
    *,
    router_loss: bool = False,
    multimodal: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Run the backbone once, without the head.

    Args:
        model: unwrapped model (PEFT or plain).
        input_ids, attention_mask: `(B, P + T)`, prompt left-padded, completion right-padded.
        num_completion_tokens: T.
        router_loss: also return the load-balancing loss of a mixture of experts.
        multimodal: entries of `MULTIMODAL_KEYS` in the batch.

    Returns:
        hidden states `(B, T, H)` at the positions that predict the completion tokens, and the scalar router loss or
        None.
    """
    model = causal_lm(model)
    if "pixel_values" in multimodal and "pixel_values" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"the batch has images, and {type(model).__name__} reads text alone: it would score the answers without "
            "the pictures. Use a vision-language model."
        )
    kwargs = {"output_router_logits": True} if router_loss else {}
    outputs = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs, **multimodal
    )
    aux_loss = None
    if router_loss:
        # Every family of experts in transformers inherits Mixtral's load-balancing loss.

        config = model.config.get_text_config()
        aux_loss = load_balancing_loss_func(
            outputs.router_logits, config.num_experts, config.num_experts_per_tok, attention_mask
        )
    return completion_positions(outputs.last_hidden_state, num_completion_tokens), aux_loss


def multimodal_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """The entries of a batch that a vision-language backbone takes."""
    return {key: inputs[key] for key in MULTIMODAL_KEYS if key in inputs}


def token_log_probs(hidden_states: Tensor, head: Head, ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities `(N,)` of one token each, and entropies `(N,)`, from hidden states `(N, H)`.

    `options` are further ones of `NextToken.log_probs`: `temperature`, `chunk_size`.
    """
    log_probs, _, entropy = NextToken(hidden_states, head).log_probs(ids=ids.unsqueeze(-1), **options)
    return log_probs.squeeze(-1), entropy


def unique_tensors(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Tensors without None and without repeats: a self-teacher shares its head with the student."""
    return list({id(x): x for x in tensors if x is not None}.values())


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Put `(N,)` values back at the True positions of `mask` `(B, T)`, zero elsewhere; keeps the graph."""
    return torch.zeros_like(mask, dtype=values.dtype).masked_scatter(mask, values)
