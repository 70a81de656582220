"""Counting models, against those that are really built."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig
from trl import ModelConfig

from opd_trl.planning.model_size import adapter_parameters, build, measure
from tests import tiny
from tests.planning.sized import sized
from tests.trainers import vision


def test_a_model_of_the_shape_of_smollm2_has_134515008_parameters():
    sizes = {"hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "vocab_size": 49152}
    config = LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    assert sized(config).parameters == 134_515_008


def test_qwen3_has_the_published_numbers_of_parameters(student, teacher):
    assert student.parameters == 1_720_574_976
    assert teacher.parameters == 8_190_735_360


@pytest.mark.parametrize("tied", [True, False])
def test_the_parameters_of_a_tiny_qwen3_are_those_counted_by_hand(tied):
    attention = 32 * 32 * 2 + 32 * 16 * 2  # query and output, key and value
    mlp, norms = 3 * 32 * 64, 2 * 32 + 2 * 8  # of the layer, of queries and keys
    size = sized(tiny.build_model(tie_word_embeddings=tied).config, "float32")
    assert size.parameters == 2 * (attention + mlp + norms) + 32 + 103 * 32 * (1 if tied else 2)
    assert size.linear_parameters == 2 * (attention + mlp)
    assert size.layer_parameters == attention + mlp + norms + 32 / 2  # its share of the last norm
    assert (size.query_size, size.kv_size, size.has_qk_norm, size.width) == (32, 16, True, 4)


def test_a_size_on_the_meta_device_is_that_of_the_model_itself():
    model = tiny.build_model()
    assert measure(model, dtype="float32") == sized(model.config, "float32")


def test_a_model_that_reads_images_is_counted_with_its_vision_tower():
    model = vision.build_vlm(vision.build_processor())
    size = measure(build(model.config, trust_remote_code=False), dtype="float32")
    assert size.parameters == sum(x.numel() for x in model.parameters())
    assert size.num_layers == model.config.text_config.num_hidden_layers


def test_the_width_is_that_of_the_loaded_dtype_or_of_the_config():
    config = tiny.build_model().config
    config.dtype = torch.bfloat16
    assert [sized(config, dtype).width for dtype in ("float32", "bfloat16", "auto")] == [4, 2, 2]


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], None])
def test_the_adapter_counts_what_a_real_peft_model_trains(targets):
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    real = sum(p.numel() for p in get_peft_model(tiny.build_model(), config).parameters() if p.requires_grad)
    model = build(tiny.build_model().config, trust_remote_code=False)
    assert adapter_parameters(model, ModelConfig(lora_r=4, lora_target_modules=targets)) == real


def test_quantization_is_that_of_the_arguments_or_of_the_checkpoint():
    model = tiny.build_model()
    assert measure(model, dtype="auto").linear_bits is None
    assert measure(model, dtype="auto", quantization={"load_in_4bit": True}).linear_bits == 4.5
    assert measure(model, dtype="auto", quantization={"load_in_8bit": True}).linear_bits == 8
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert measure(model, dtype="auto", quantization={"load_in_4bit": False}).linear_bits == 4
    model.config.quantization_config = {"quant_method": "fp8"}
    assert measure(model, dtype="auto").linear_bits == 8
    model.config.quantization_config = {"quant_method": "of next year"}
    assert measure(model, dtype="auto").linear_bits is None
