"""A tiny model of each family of causal language models, built from its configuration alone."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


#: The table of families: what it names is what is tested.
PAGE = Path(__file__).parents[2] / "docs" / "families.md"
# What a configuration is shrunk to, under whichever of these names it has.
SIZES = {
    "vocab_size": 103,
    "hidden_size": 32,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "is_decoder": True,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "image_size": 16,
    "patch_size": 8,
    "depth": 1,
    "out_hidden_size": 32,
}
# Multi-head latent attention has sizes of its own.
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
PAIR = {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2}
ROPE_3D = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
# What else a family needs, `None` to leave a size out; scales, caps and padded rows are set where a family has them.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "layer_types": None, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3},
    "falcon_h1": {**MAMBA, "layer_types": None, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "gemma2": {"final_logit_softcapping": 2.0},
    "gemma3": {"mm_tokens_per_image": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 103, "hidden_size_per_layer_input": 8},
    "gemma4_text": {"head_dim": None, "vocab_size_per_layer_input": 103, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granite": {"logits_scaling": 4.0},
    "granitemoe": {"logits_scaling": 4.0},
    "granitemoehybrid": {**MAMBA, **PAIR, "shared_intermediate_size": 32},
    "granitemoehybrid without experts": {**MAMBA, **PAIR, "num_local_experts": 0, "num_experts_per_tok": 0},
    "granitemoeshared": {"logits_scaling": 4.0, "shared_intermediate_size": 32},
    "hyperclovax": {"logits_scaling": 0.5},
    "inkling2_text": {"unpadded_vocab_size": 100},
    "inkling_text": {"logits_mup_width_multiplier": 4.0, "unpadded_vocab_size": 100},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "layer_types": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1, "state_size": 8},
    "minicpm3": {"tie_word_embeddings": False},
    "nanochat": {"final_logit_softcapping": 2.0},
    "qwen2_5_vl": {"text_config": ROPE_3D, "vision_config": {"num_heads": 4, "fullatt_block_indexes": [0]}},
    "qwen3_vl": {"text_config": ROPE_3D, "vision_config": {"num_heads": 4, "deepstack_visual_indexes": [0]}},
    "recurrent_gemma": {"block_types": ("recurrent", "attention"), "layer_types": None, "logits_soft_cap": 2.0},
    "vaultgemma": {"final_logit_softcapping": 2.0},
    "xlstm": {"hidden_size": 128, "num_heads": 4, "output_logit_soft_cap": 2.0},
    "bert without is_decoder": {"is_decoder": False},
}


def sizes_of(config_class, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a tiny configuration: sizes that it has, one layer of each type, sub-configurations likewise."""
    default = config_class()

    def settable(key: str) -> bool:
        place = getattr(config_class, config_class.attribute_map.get(key, key), None)
        return hasattr(default, key) and not (isinstance(place, property) and place.fset is None)

    sizes = SIZES | (LATENT if hasattr(default, "qk_rope_head_dim") else {}) | options
    found = {key: value for key, value in sizes.items() if value is not None and (key in options or settable(key))}
    for name in config_class.sub_configs:
        sub = getattr(default, name, None)
        if sub is not None:
            found[name] = {"model_type": sub.model_type} | sizes_of(type(sub), options.get(name, {}))
    if "layer_types" not in options and settable("layer_types") and default.layer_types is not None:
        found["layer_types"] = list(dict.fromkeys(default.layer_types))
        found["num_hidden_layers"] = len(found["layer_types"])
    return found


def build(family: str, seed: int = 0) -> nn.Module:
    """The family's tiny model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    config_class = CONFIG_MAPPING[family.split()[0]]
    config = config_class(**sizes_of(config_class, OWN.get(family, {})))
    auto = AutoModelForImageTextToText if family in named("images") else AutoModelForCausalLM
    return auto.from_config(config, dtype=torch.float32).eval()


def named(row: str) -> list[str]:
    """The families in those rows of docs/families.md whose text has `row`, as far as the installed transformers goes.

    A name is a model type, with what follows it where that is another configuration of the same type.
    """
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|") and row in line]
    names = [name.replace("`", "") for line in rows for name in re.findall(r"`[\w-]+`(?: without \w+)?", line)]
    return [name for name in names if name.split()[0] in CONFIG_MAPPING]
