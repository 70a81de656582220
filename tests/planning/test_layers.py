"""What a decoder layer saves for backward, against what torch saves."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from opd_trl.planning.model_size import measure
from opd_trl.planning.step import layer_bytes_per_token


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("dtype", "autocast", "width", "stream"),
    [(torch.bfloat16, False, 2, 2), (torch.float32, True, 2, 4), (torch.float32, False, 4, 4)],
)
@pytest.mark.parametrize("config_class", [Qwen3Config, LlamaConfig])
def test_a_layer_saves_the_bytes_for_backward_that_torch_saves(
    config_class, dtype, autocast, width, stream, attention
):
    sizes = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 384, "head_dim": 16}
    saved = []
    for layers in (1, 2):
        config = config_class(**sizes, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=2)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype)
        saved.append(saved_bytes(model, autocast))
    options = {"width": width, "stream": stream, "attention": attention, "adapters": None}
    per_token = layer_bytes_per_token(measure(model, dtype=dtype), 48, **options)
    assert per_token == pytest.approx((saved[1] - saved[0]) / (2 * 48), rel=0.02)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("dtype", "autocast", "width", "kept"),
    [(torch.bfloat16, True, 2, 2), (torch.float32, True, 2, 2), (torch.bfloat16, False, 2, 4)],
)
@pytest.mark.parametrize("config_class", [Qwen3Config, LlamaConfig])
def test_a_layer_with_adapters_saves_the_bytes_that_torch_saves(config_class, dtype, autocast, width, kept, attention):
    sizes = {"vocab_size": 64, "hidden_size": 160, "intermediate_size": 384, "head_dim": 16}
    saved = []
    for layers in (1, 2):
        config = config_class(**sizes, num_hidden_layers=layers, num_attention_heads=5, num_key_value_heads=1)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype)
        size = measure(model, dtype=dtype)
        lora = LoraConfig(r=1, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora).train()
        model.enable_input_require_grads()
        saved.append(saved_bytes(model.get_base_model(), autocast))
    mask = 4  # dropout on a CPU
    options = {"width": width, "stream": width, "attention": attention, "adapters": kept + mask}
    per_token = layer_bytes_per_token(size, 48, **options)
    assert per_token == pytest.approx((saved[1] - saved[0]) / (2 * 48), rel=0.03)


def test_a_flash_attention_keeps_no_mask(work, student):
    options = {"width": 2, "stream": 2, "adapters": None}
    sdpa, flash = (layer_bytes_per_token(student, 4608, attention=a, **options) for a in ("sdpa", "flash_attention_2"))
    assert sdpa - flash == 2 * 4608


def saved_bytes(model, autocast: bool) -> int:
    """Bytes that the backbone saves at 2 x 48 tokens, some of them padding, without weights and their casts."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {shape for p in model.parameters() if p.dim() > 1 for shape in (p.shape, p.mT.shape)}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape not in shapes:
            saved[storage.data_ptr()] = storage
        return tensor

    ids, mask = torch.zeros(2, 48, dtype=torch.long), torch.ones(2, 48, dtype=torch.long)
    mask[0, :5] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", enabled=autocast):
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storage.nbytes() for storage in saved.values())
