"""Logit conventions of the model families, experts and heads: as the model's own forward computes them."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from opd_trl.losses import chunked_support_log_probs
from opd_trl.models.forward import completion_hidden_states, read_head
from tests import tiny
from tests.trainers.build import fixed_batch, lora_config, opd_trainer, opsd_trainer


SMALL = {
    "vocab_size": 103,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
FAMILIES = {
    "scale": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3)),
    "divisor": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
    "softcap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, final_logit_softcapping=2.0, query_pre_attn_scalar=8, sliding_window=64)
    ),
    "bias": lambda: GPTJForCausalLM(
        GPTJConfig(vocab_size=103, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_soft_capped_and_biased_logits_are_those_of_the_model(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    if family == "bias":
        torch.nn.init.normal_(model.lm_head.bias)
    ids = torch.randint(3, 103, (2, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        reference = model(input_ids=ids, attention_mask=mask).logits[:, -5:-1].log_softmax(-1)
        hidden, _ = completion_hidden_states(model, ids, mask, 4, multimodal={})
    head = read_head(model)
    log_probs, ids, _ = chunked_support_log_probs(
        hidden.flatten(0, 1),
        head.weight,
        top_k=103,
        bias=head.bias,
        logit_scale=head.logit_scale,
        final_logit_softcapping=head.final_logit_softcapping,
    )
    torch.testing.assert_close(log_probs, reference.flatten(0, 1).gather(-1, ids), rtol=1e-4, atol=1e-5)
    assert (head.bias is not None) == (family == "bias")


@pytest.mark.parametrize("rewards", [False, True])
def test_the_auxiliary_loss_of_experts_is_added_as_in_grpo(tmp_path, teacher_path, rewards):
    def build(coef):
        torch.manual_seed(0)
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **experts))
        model.set_experts_implementation("eager")  # torch 2.8 has no grouped_mm on a CPU
        options = {"processing_class": tiny.build_tokenizer()}
        if rewards:
            options["reward_funcs"] = lambda completions, **_: [0.0] * len(completions)
        return opd_trainer(
            tmp_path,
            model,
            teacher_path,
            router_aux_loss_coef=coef,
            num_generations=2,
            gradient_accumulation_steps=2,
            trainer_options=options,
        )

    batch, losses = None, {}
    for coef in (0.0, 1.0):
        trainer = build(coef)
        batch = batch or {k: v[:4] if v.ndim else v for k, v in fixed_batch(trainer).items()}
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 2
        losses[coef] = trainer._compute_loss(trainer.model, batch).item()
    (aux,) = trainer._metrics["train"]["aux_loss"]
    assert aux > 0.5
    assert abs(losses[1.0] - losses[0.0] - aux / 2) < 1e-4  # half: two accumulation steps


def test_a_head_saved_with_the_adapter_is_the_students_alone(tmp_path, student_path):
    """modules_to_save=['lm_head']: the base teacher reads the original head, the student the trained one."""
    model = tiny.build_model(tie_word_embeddings=False)
    options = {"peft_config": lora_config(modules_to_save=["lm_head"], target_modules=["q_proj"])}
    trainer = opsd_trainer(
        tmp_path, model, lora=False, trainer_options=options | {"processing_class": tiny.build_tokenizer()}
    )
    batch = fixed_batch(trainer)
    student = trainer.model.get_base_model().get_output_embeddings().modules_to_save["default"].weight
    with torch.no_grad():
        student.add_(1.0)
    head = trainer.teacher_scores(trainer.model, batch)[""].head
    assert not torch.equal(head.weight, student)
    trainer._compute_loss(trainer.model, batch).backward()
    assert student.grad.abs().max() > 0
