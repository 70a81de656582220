"""Count a model from its config.json, without memory for its weights."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from trl import ModelConfig, get_peft_config

from ..models.lora_folders import base_of, is_adapter
from .workload import FOUR_BITS, ModelSize


def read_config(
    field: str, name: str | None, folder: str | None, *, flag: str, trust_remote_code: bool
) -> PretrainedConfig:
    """The config.json of a model: in `folder` where one is given, else that of the recipe's model `name`.

    `field` (`student` or `teacher`) and `flag`, which takes the folder, are for the ValueError where none can be read.
    """
    if name is None and folder is None:
        raise ValueError(f"no {field} is given. Name it in the recipe, or give {flag}.")
    try:
        return AutoConfig.from_pretrained(base_of(folder or name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no config.json can be read for the {field} {folder or name!r}: it is neither a folder that holds one "
            f"nor a model of the hub that can be reached. Give {flag}, a folder with the config.json of the model."
        ) from error


def build(config: PretrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    """The causal or vision-language model of a config on the `meta` device: shapes alone."""
    kind = type(config)
    reads_images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
    auto = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=trust_remote_code)


def measure(
    model: PreTrainedModel, *, dtype: str | torch.dtype | None, quantization: dict[str, Any] | None = None
) -> ModelSize:
    """The sizes of a causal language model, counted on its modules.

    Args:
        model: on any device.
        dtype: in which it is loaded; `auto` or None: that of its config.
        quantization: of its linear layers, as it is loaded; else that of its checkpoint.

    Raises:
        ValueError: its config lacks what that of a transformer decoder has.
    """
    config = model.config.get_text_config()
    tables = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    decoder = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    try:
        heads, hidden = config.num_attention_heads, config.hidden_size
        inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        return ModelSize(
            parameters=count(model.parameters()),
            linear_parameters=count(parameter for parameter in decoder if parameter.dim() > 1),
            layer_parameters=-(-count(decoder) // config.num_hidden_layers),
            vocab_size=config.vocab_size,
            hidden_size=hidden,
            intermediate_size=inner * (getattr(config, "num_experts_per_tok", None) or 1),
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or hidden // heads,
            has_qk_norm=any(name.endswith("q_norm") for name, _ in model.named_modules()),
            width=width_of(dtype, config),
            linear_bits=quantized_bits(quantization or {})
            or quantized_bits(getattr(model.config, "quantization_config", None) or {}),
        )
    except AttributeError as error:
        raise ValueError(
            f"a {config.model_type} model is not a transformer decoder that can be sized: {error}."
        ) from error


def count(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers there are; `Module.parameters` gives tied weights once."""
    return sum(parameter.numel() for parameter in parameters)


def width_of(dtype: str | torch.dtype | None, config: PretrainedConfig) -> int:
    """Bytes of a weight; a config that names no dtype counts as float32."""
    if dtype in (None, "auto"):
        dtype = config.dtype or torch.float32
    return (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize


def quantized_bits(settings: dict[str, Any]) -> float | None:
    """Bits of a weight of a linear layer by a `quantization_config`: of bitsandbytes, GPTQ, AWQ, or FP8.

    None for other methods, so that they are counted as not quantized.

    >>> quantized_bits({"load_in_4bit": True}), quantized_bits({"quant_method": "awq", "bits": 4}), quantized_bits({})
    (4.5, 4.0, None)
    """
    if settings.get("load_in_4bit"):
        return FOUR_BITS
    if settings.get("load_in_8bit") or settings.get("quant_method") in ("fp8", "fbgemm_fp8"):
        return 8.0
    return float(settings["bits"]) if "bits" in settings else None


def adapter_parameters(model: PreTrainedModel, model_args: ModelConfig) -> int | None:
    """How many weights LoRA trains on `model`: the student's own, where the student is an adapter, or the recipe's.

    None where it is off and PEFT knows no layers for it.
    """
    name = model_args.model_name_or_path
    recipe = dataclasses.replace(model_args, use_peft=True)
    lora = PeftConfig.from_pretrained(name) if is_adapter(name) else get_peft_config(recipe)
    lora.inference_mode = False
    try:
        peft_model = get_peft_model(model, lora)
    except ValueError:
        if model_args.use_peft:
            raise
        return None
    return count(parameter for parameter in peft_model.parameters() if parameter.requires_grad)
