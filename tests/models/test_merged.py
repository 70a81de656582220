"""Sampling from merged weights: the same tokens, and every weight bit for bit the same behind."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers import GPT2Config, GPT2LMHeadModel

from opd_trl.models.merged import merge, merged_adapters
from opd_trl.models.sampling import Sampling
from opd_trl.models.transformers_engine import TransformersEngine, answer_ids
from tests import tiny


IDS = torch.arange(3, 27).view(2, 12)


def adapted(model=None, **options):
    torch.manual_seed(0)
    lora = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | options
    peft_model = get_peft_model(model or tiny.build_model(), LoraConfig(**lora)).eval()
    for name, parameter in peft_model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.3
    return peft_model


def kept(model) -> list:
    """Every tensor of a model: where it lies and what is in it."""
    tensors = [*model.parameters(), *model.buffers()]
    return [(id(x), x.data_ptr(), x.clone(), x.requires_grad) for x in tensors]


def is_merged(model) -> bool:
    return any(part.merged for part in model.modules() if isinstance(part, LoraLayer))


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=103, n_embd=32, n_layer=2, n_head=4, n_positions=64))


def with_second_adapter():
    model = adapted()
    model.add_adapter("teacher", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    return model


MERGED = {
    "lora": adapted,
    "float64": lambda: adapted(tiny.build_model().double()),
    "dora": lambda: adapted(use_dora=True),
    "embedding, not tied": lambda: adapted(
        tiny.build_model(tie_word_embeddings=False), target_modules=["embed_tokens", "q_proj"]
    ),
    "transposed weights, bias": lambda: adapted(gpt2(), target_modules=["c_attn", "c_fc"], lora_bias=True),
    "modules_to_save": lambda: adapted(modules_to_save=["lm_head"]),
    "a second adapter, off": with_second_adapter,
}


@pytest.mark.parametrize("name", MERGED)
def test_merged_weights_give_the_same_logits_and_are_the_old_ones_behind(name):
    model = MERGED[name]()
    before, expected = kept(model), model(IDS).logits
    with merged_adapters(model):
        assert is_merged(model)
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not is_merged(model)
    for (tensor, place, value, trained), now in zip(before, kept(model), strict=True):
        assert (tensor, place, trained) == (now[0], now[1], now[3])
        assert torch.equal(value, now[2])
    assert torch.equal(model(IDS).logits, expected)


def merged_before():
    model = adapted()
    model.merge_adapter()
    return model


def with_adapters_off():
    model = adapted()
    model.base_model.disable_adapter_layers()
    return model


def with_two_on():
    model = with_second_adapter()
    model.base_model.set_adapter(["default", "teacher"])
    return model


LEFT_ALONE = {
    "no adapter": tiny.build_model,
    "bfloat16": lambda: adapted(tiny.build_model().bfloat16()),
    "an adapter in bfloat16": lambda: adapted().apply(
        lambda part: part.bfloat16() if isinstance(part, torch.nn.ModuleDict) else None
    ),
    "tied": lambda: adapted(target_modules=["embed_tokens", "q_proj"]),
    "single tokens": lambda: adapted(trainable_token_indices=[3, 4]),
    "a bias where the layer has none": lambda: adapted(lora_bias=True),
    "two adapters on": with_two_on,
    "adapters off": with_adapters_off,
    "merged before": merged_before,
    "not in memory": lambda: adapted().to("meta"),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_cannot_be_merged_exactly_is_left_alone(name):
    model = LEFT_ALONE[name]()
    was, before = is_merged(model), [x.data_ptr() for x in model.parameters()]
    with merged_adapters(model):
        assert is_merged(model) == was
        assert [x.data_ptr() for x in model.parameters()] == before
    assert is_merged(model) == was


def test_under_autocast_a_sum_would_be_rounded_so_nothing_is_merged():
    model = adapted()
    with torch.autocast("cpu", torch.bfloat16), merged_adapters(model):
        assert not is_merged(model)


@pytest.mark.parametrize("where", ["within", "while merging"])
def test_an_error_leaves_the_old_weights(monkeypatch, where):
    model = adapted()
    before = kept(model)
    if where == "while merging":
        last = [part for part in model.modules() if isinstance(part, LoraLayer)][-1]
        monkeypatch.setattr("opd_trl.models.merged.merge", lambda layer: 1 / (layer is not last) and merge(layer))
    with pytest.raises(ZeroDivisionError), merged_adapters(model):
        assert 1 / 0
    assert not is_merged(model)
    for was, now in zip(before, kept(model), strict=True):
        assert was[1] == now[1]
        assert torch.equal(was[2], now[2])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_engine_samples_merged_and_gives_the_same_answers(monkeypatch, temperature):
    model, tokenizer, prompts = adapted(), tiny.build_tokenizer(), tiny.questions(4)["prompt"]
    ids = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt in prompts]
    sampling = Sampling(temperature=temperature, top_p=0.95, top_k=0, max_new_tokens=16)
    seen, generate, found = [], model.generate, []
    monkeypatch.setattr(model, "generate", lambda **options: (seen.append(is_merged(model)), generate(**options))[1])

    def answers() -> list:
        torch.manual_seed(0)
        options = {"temperature": 1.0} if temperature else {}
        return [
            TransformersEngine(model, tokenizer).generate(ids, sampling, [0] * 4),
            answer_ids(model, tokenizer, prompts, max_new_tokens=16, **options),
        ]

    found.append(answers())
    monkeypatch.setattr("opd_trl.models.merged.can_merge", lambda *_: False)
    found.append(answers())
    assert found[0] == found[1]
    assert seen == [True, True, False, False]
