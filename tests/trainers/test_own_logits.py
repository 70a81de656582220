"""A student whose family needs more than a backbone and a head: positions, router losses, old log-probabilities."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
)

from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer


SIZES = {
    "vocab_size": 103,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
OPTIONS = {"processing_class": tiny.build_tokenizer(), "teacher_processing_class": tiny.build_tokenizer()}


def gpt2(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"vocab_size": 103, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, pad_token_id=0, eos_token_id=2, bos_token_id=1))


def rows_of(batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Prompt and completion of each row, without padding."""
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    prompts, prompt_mask, answers, mask = (batch[name] for name in names)
    kept = zip(prompts, prompt_mask.bool(), answers, mask.bool(), strict=True)
    return [(prompt[a], answer[b]) for prompt, a, answer, b in kept]


def own_log_probs(model, prompt, answer) -> torch.Tensor:
    """`(T, V)`, of one row alone."""
    ids = torch.cat([prompt, answer])[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("rewards", [False, True])
def test_learned_positions_do_not_depend_on_the_rows_beside(tmp_path, rewards):
    """The loss, and with rewards the log-probabilities that TRL asks for of the reference model."""
    options = dict(OPTIONS)
    if rewards:
        options["reward_funcs"] = lambda completions, **_: [0.0] * len(completions)
    teacher, student = gpt2(1), str(tmp_path / "student")
    gpt2(0).save_pretrained(student)  # TRL loads the reference model from where the student came
    dataset = tiny.questions()
    trainer = opd_trainer(
        tmp_path,
        student,
        teacher,
        dataset=dataset,
        loss_support="full",
        beta=0.3 if rewards else 0.0,
        policy_coef=0.0,
        num_generations=2 if rewards else 1,
        shuffle_dataset=False,
        trainer_options=options,
    )
    batch = {k: v[:4] if v.ndim else v for k, v in fixed_batch(trainer).items()}
    assert batch["prompt_mask"].min() == 0
    rows = rows_of(batch)
    if rewards:
        for row, (prompt, answer) in enumerate(rows):
            own = own_log_probs(trainer.ref_model, prompt, answer).gather(-1, answer[:, None])[:, 0]
            torch.testing.assert_close(batch["ref_per_token_logps"][row, : len(answer)], own, rtol=1e-4, atol=1e-4)
        return
    trainer.compute_loss(trainer.model, batch)
    measured = trainer._metrics["train"]["distillation/per_token_divergence"][-1]
    total = 0.0
    for prompt, answer in rows:
        p, q = (own_log_probs(model, prompt, answer) for model in (trainer.model, teacher))
        total += (p.exp() * (p - q)).sum().item()
    assert abs(measured - total / sum(len(answer) for _, answer in rows)) < 1e-4


def granite(experts: int):
    torch.manual_seed(0)
    mamba = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    config = GraniteMoeHybridConfig(
        **SIZES,
        **mamba,
        num_local_experts=experts,
        num_experts_per_tok=2 if experts else 0,
        shared_intermediate_size=32,
        layer_types=["attention", "attention"],
    )
    return GraniteMoeHybridForCausalLM(config)


@pytest.mark.parametrize("experts", [0, 4])
def test_a_router_loss_is_that_of_the_model_and_none_where_it_has_no_experts(tmp_path, teacher_path, experts):
    trainer = opd_trainer(tmp_path, granite(experts), teacher_path, trainer_options=OPTIONS)
    assert trainer.aux_loss_enabled == bool(experts)
    trainer.train()
    assert ("aux_loss" in trainer.state.log_history[0]) == bool(experts)


def test_a_router_loss_that_is_asked_for_and_is_not_there_is_refused(tmp_path, teacher_path):
    with pytest.raises(ValueError, match=r"router_aux_loss_coef=0.1, and .* granitemoehybrid computes no router loss"):
        opd_trainer(tmp_path, granite(0), teacher_path, router_aux_loss_coef=0.1, trainer_options=OPTIONS)
    assert not list((tmp_path / "out").glob("*"))


def test_the_router_loss_counts_no_padding(tmp_path, teacher_path):
    torch.manual_seed(0)
    student = GraniteMoeForCausalLM(GraniteMoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))
    trainer = opd_trainer(tmp_path, student, teacher_path, router_aux_loss_coef=1.0, trainer_options=OPTIONS)
    batch = {k: v[:4] if v.ndim else v for k, v in fixed_batch(trainer).items()}
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch)
    (measured,) = trainer._metrics["train"]["aux_loss"]
    rows = [torch.cat(row) for row in rows_of(batch)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    with torch.no_grad():
        own = student(input_ids=ids, attention_mask=mask, output_router_logits=True).aux_loss.item()
    assert abs(measured - own) < 1e-4
