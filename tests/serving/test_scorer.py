"""The scorer in this process: every architecture's own conventions, against the logits of the model itself."""

from array import array

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from opd_trl.serving.answers import PromptScores
from opd_trl.serving.scorer import NonFiniteScores, Scorer, check_finite, load_scorer
from tests import tiny


SEQUENCES = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22], [33, 0, 31, 0, 0]]
SMALL = {
    "vocab_size": 103,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "qwen3": {"head_dim": 8, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # learned positions
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},  # positions from the attention mask
    "phi": {},  # a bias in the head
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 3, "final_logit_softcapping": 2.0},
    "cohere": {"logit_scale": 0.25, "num_key_value_heads": 2},
    "granite": {"logits_scaling": 4.0, "num_key_value_heads": 2},
    "mamba": {"state_size": 4, "time_step_rank": 4},  # no attention: a recurrence over every position
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
}


def build(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL | ARCHITECTURES[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if kind == "phi":
        model.lm_head.bias.data.normal_()
    return model


@torch.no_grad()
def own_log_probs(model, ids: list[int], temperature: float) -> torch.Tensor:
    return (model(torch.tensor([ids])).logits[0, :-1].float() / temperature).log_softmax(-1)


def scores_of(scorer: Scorer, sequences: list[list[int]], **options) -> list[PromptScores]:
    """What a request of `/v1/completions` is answered."""
    return scorer.prompt_scores(
        scorer.hidden_states(sequences, [len(ids) - 1 for ids in sequences]), sequences, **options
    )


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_log_probs_are_those_of_the_models_own_logits(kind):
    model = build(kind)
    scores = scores_of(Scorer(model, tiny.build_tokenizer(), 64), SEQUENCES, top_k=5, temperature=0.8)
    for (ids, log_probs, ranks), sequence in zip(scores, SEQUENCES, strict=True):
        expected = own_log_probs(model, sequence, 0.8)
        assert torch.equal(ids[:, 0], torch.tensor(sequence[1:]))
        torch.testing.assert_close(log_probs, expected.gather(-1, ids), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(log_probs[:, 1:], expected.topk(5).values, atol=1e-5, rtol=1e-5)
        assert ranks[:, 1:].tolist() == [[1, 2, 3, 4, 5]] * len(ids)
        exact = (expected > expected.gather(-1, ids[:, :1])).sum(-1) + 1
        assert torch.equal(ranks[:, 0], exact.clamp(max=6))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_head_and_hidden_states_are_all_that_a_student_needs(kind, tmp_path):
    model = build(kind)
    scorer = Scorer(model, tiny.build_tokenizer(), 64)
    (tmp_path / "head").write_bytes(b"".join(scorer.head_file({"model": "x"})[1]))
    with safe_open(tmp_path / "head", "pt") as file:
        head = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        conventions = file.metadata()
    assert ("bias" in head) == (kind == "phi")
    assert bool(conventions["final_logit_softcapping"]) == (kind == "gemma2")
    num_scored = [2, 2, 4]
    for hidden, sequence, n in zip(scorer.hidden_states(SEQUENCES, num_scored), SEQUENCES, num_scored, strict=True):
        logits = float(conventions["logit_scale"]) * (hidden @ head["weight"].T + head.get("bias", 0))
        if cap := conventions["final_logit_softcapping"]:
            logits = float(cap) * torch.tanh(logits / float(cap))
        expected = own_log_probs(model, sequence, 1.0)[-n:]
        torch.testing.assert_close(logits.log_softmax(-1), expected, atol=1e-5, rtol=1e-5)


def test_the_whole_vocabulary_can_be_asked_for():
    model = build("qwen3")
    (scores,) = scores_of(Scorer(model, None, 64), SEQUENCES[:1], top_k=103)
    torch.testing.assert_close(scores.log_probs.exp()[:, 1:].sum(-1), torch.ones(7))
    assert torch.equal(scores.log_probs[:, 0], scores.log_probs[:, 1:].gather(-1, scores.ranks[:, :1] - 1).squeeze(-1))


def test_no_tensor_is_as_large_as_tokens_times_vocabulary(monkeypatch):
    from opd_trl.losses import head

    vocab, tokens = 103, 40
    monkeypatch.setattr(head, "CPU_BUDGET", 2 * 4 * vocab * 4)  # 4 tokens at once
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **kwargs or {})
            if isinstance(result, torch.Tensor) and result.dim() == 2 and result.size(-1) == vocab:
                largest = max(largest, result.size(0))
            return result

    scorer = Scorer(build("qwen3"), None, 64)
    with Watch():
        requested = [([0] + [2] * tokens, array("i", [1, 2] * tokens))]
        scores_of(scorer, [[5] * (tokens + 1)], top_k=3, requested=requested)
    assert 0 < largest <= 4


def test_the_sequence_with_scores_that_are_not_finite_is_named():
    model = build("qwen3")
    model.model.embed_tokens.weight.data[31] = float("inf")
    states = Scorer(model, None, 64).hidden_states(SEQUENCES, [1, 1, 1])
    with pytest.raises(NonFiniteScores, match="sequence 2") as error:
        check_finite(states)
    assert error.value.index == 2
    model = build("phi")
    model.lm_head.bias.data[50] = float("inf")
    with pytest.raises(NonFiniteScores, match="sequence 0"):
        scores_of(Scorer(model, None, 64), SEQUENCES, top_k=3)


def test_the_model_is_frozen_in_the_dtype_asked_for_and_its_window_is_the_longest_sequence(student_path):
    scorer = load_scorer(student_path, device="cpu", dtype="bfloat16")
    assert scorer.model.dtype == torch.bfloat16
    assert scorer.max_length == 512
    assert not scorer.model.training
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())
    given_by_hand = {"dtype": "float32", "max_position_embeddings": 1024}
    scorer = load_scorer(student_path, device="auto", dtype="bfloat16", model_init_kwargs=given_by_hand)
    assert (scorer.model.dtype, scorer.max_length) == (torch.float32, 1024)


def test_a_length_beyond_the_window_and_a_model_without_a_window_are_refused(student_path, tmp_path):
    with pytest.raises(ValueError, match="--max-length 513 exceeds the context window of 512 tokens"):
        load_scorer(student_path, device="cpu", max_length=513)
    config = AutoConfig.for_model("mamba", vocab_size=103, hidden_size=32, num_hidden_layers=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny.build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"how long its context window is\. Give --max-length\."):
        load_scorer(str(tmp_path), device="cpu")
    assert load_scorer(str(tmp_path), device="cpu", max_length=100).max_length == 100
