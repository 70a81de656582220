"""The moments of a step, by hand."""

from dataclasses import replace

import pytest

from opd_trl.planning.component import BACKWARD, GENERATION, GIB, LOSS, MOMENTS, bytes_at, total, verdict
from opd_trl.planning.sizing import estimate
from opd_trl.planning.workload import engines
from tests.planning.sized import FSDP2, SINGLE, ZERO2, ZERO3, by_name


def test_the_loss_chunk_follows_its_budget_and_never_exceeds_the_tokens(work):
    default, small = by_name(work, SINGLE)["loss chunk"], by_name(replace(work, loss_memory_mib=256), SINGLE)
    assert default > GIB
    assert small["loss chunk"] < default / 2
    few = by_name(replace(work, batch_size=1, completion_length=3), SINGLE)["loss chunk"]
    assert few == 151936 * 3 * (2 * 4 + 2 + 2 * 4)


def test_a_loss_of_all_ids_has_more_temporaries(work):
    few = replace(work, batch_size=1, completion_length=3, loss_support="full")
    assert by_name(few, SINGLE)["loss chunk"] == 151936 * 3 * (2 * 4 + 2 + 15 * 4)


def test_the_head_has_a_float32_gradient_and_is_gathered_whole_where_it_is_sharded(work):
    assert by_name(work, ZERO2)["LM head gradient"] == 151936 * 2048 * 4
    assert "LM heads" not in by_name(work, ZERO2)
    for engine in (ZERO3, FSDP2):
        assert by_name(work, engine)["LM heads"] == 151936 * (2048 + 4096) * 2
        own = replace(work, teachers=(), teacher_kind="base", use_peft=True)
        assert by_name(own, engine)["LM heads"] == 151936 * 2048 * 2


def test_checkpointing_keeps_the_inputs_of_the_layers(work):
    tokens = 2 * (512 + 4096)
    assert by_name(work, ZERO2)["checkpoints"] == 28 * tokens * 2048 * 2
    assert by_name(work, SINGLE)["checkpoints"] == 28 * tokens * 2048 * 4  # float32 embeddings
    without = replace(work, gradient_checkpointing=False)
    assert by_name(without, ZERO2)["activations"] > 10 * by_name(work, ZERO2)["checkpoints"]


@pytest.mark.parametrize(
    ("fields", "kept"),
    [({}, 2 + 1), ({"device": "cpu"}, 2 + 4), ({"mixed_precision": False}, 4 + 1)],  # cast by autocast, or float32
)
def test_an_adapter_keeps_its_input_and_the_mask_of_dropout(work, student, fields, kept):
    lora = replace(work, use_peft=True, gradient_checkpointing=False, student=replace(student, width=2), **fields)
    per_token = 8 * 2048 + (2 * 2 + 4) * (2048 + 1024) + 3 * 2 * 6144 + kept * (5 * 2048 + 2048 + 6144) + 2 * 4608
    assert by_name(lora, SINGLE)["activations"] == 28 * 2 * 4608 * per_token


def test_autocast_casts_float32_weights_and_no_others(work, student):
    assert by_name(work, SINGLE)["working weights"] == 2 * student.linear_parameters
    assert by_name(replace(work, use_peft=True), SINGLE)["working weights"] == 2 * student.layer_parameters
    for engine, loaded in ((ZERO2, work), (SINGLE, replace(work, student=replace(student, width=2)))):
        assert "working weights" not in by_name(loaded, engine)


def test_the_kv_cache_holds_the_tokens_of_a_generation_batch(work):
    assert by_name(work, SINGLE)["KV cache"] == 8 * (512 + 4096) * 2 * 28 * 8 * 128 * 2


def test_zero3_gathers_the_weights_to_generate_unless_told_not_to(work, student):
    assert by_name(work, ZERO3)["weights to generate"] == 2 * student.parameters
    assert "weights to generate" not in by_name(replace(work, gather_for_generation=False), ZERO3)
    assert "weights to generate" not in by_name(work, FSDP2)


def test_an_adapter_is_added_to_a_copy_of_float32_weights_to_generate(work, student):
    lora = replace(work, use_peft=True)
    assert by_name(lora, SINGLE)["weights to generate"] == 4 * student.linear_parameters
    assert "weights to generate" not in by_name(replace(lora, generation="server"), SINGLE)
    assert "weights to generate" not in by_name(lora, FSDP2)
    for other in (replace(student, width=2), replace(student, linear_bits=4.5)):
        assert "weights to generate" not in by_name(replace(lora, student=other), SINGLE)


def test_vllm_takes_its_share_always_or_only_while_it_generates_or_elsewhere(work):
    def vllm(**fields) -> list[tuple]:
        parts = estimate(replace(work, **fields), ZERO2)
        return [(part.bytes, part.moments) for part in parts if part.name == "vLLM, weights and cache"]

    assert vllm(generation="colocate") == [(20 * GIB, MOMENTS)]
    assert vllm(generation="colocate", vllm_sleeps=True) == [(20 * GIB, (GENERATION,))]
    assert vllm(generation="server") == []
    assert "KV cache" not in by_name(replace(work, generation="server"), ZERO2)


@pytest.mark.parametrize("engine", engines(8), ids=lambda engine: engine.name)
def test_the_total_is_the_sum_at_the_moment_that_takes_most(work, engine):
    parts = estimate(work, engine)
    sums = {m: sum(part.bytes for part in parts if m in part.moments) for m in MOMENTS}
    assert total(parts) == max(sums.values()) == max(bytes_at(parts, m) for m in MOMENTS)
    assert sums[LOSS] != sums[BACKWARD]
    assert len({part.name for part in parts}) == len(parts)


def test_logits_are_there_in_the_loss_and_a_recomputed_layer_in_backward_alone(work):
    moments = {part.name: part.moments for part in estimate(work, ZERO3)}
    assert moments["loss chunk"] == moments["LM heads"] == (LOSS,)
    assert moments["recomputed layer"] == (BACKWARD,)
    assert moments["checkpoints"] == moments["hidden states"] == moments["LM head gradient"] == (LOSS, BACKWARD)
    assert moments["student weights"] == moments["gradients"] == moments["optimizer state"] == MOMENTS


def test_a_cpu_has_no_cuda_context_and_a_smaller_chunk(work):
    cpu = by_name(replace(work, device="cpu"), SINGLE)
    assert "CUDA context" not in cpu
    assert cpu["loss chunk"] < by_name(work, SINGLE)["loss chunk"] / 4


def test_dense_log_probs_are_two_float32_tensors_of_tokens_and_vocabulary(work):
    assert work.dense_log_probs == 2 * (2 * 4096 * 151936 * 4)


@pytest.mark.parametrize(
    ("needed", "expected"), [(72, "fits"), (72.01, "tight"), (80, "tight"), (80.01, "does not fit")]
)
def test_a_verdict_keeps_a_tenth_free(needed, expected):
    assert verdict(needed, 80) == expected
