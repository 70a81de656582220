"""The arithmetic of `opd-trl plan`, against models that are really built and steps that are really taken."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
from trl import ModelConfig

from opd_trl.cli.advice import advice
from opd_trl.cli.model_size import adapter_parameters, build, measure
from opd_trl.cli.sizing import (
    BACKWARD,
    GENERATION,
    GIB,
    LOSS,
    MAX_LIVE_PARAMETERS,
    MOMENTS,
    REDUCE_BUCKET,
    TEACHER,
    at,
    estimate,
    layer_bytes_per_token,
    total,
    verdict,
)
from opd_trl.cli.workload import Engine, ModelSize, Workload, engines
from tests import tiny


SINGLE, DDP, ZERO1, ZERO2, ZERO3, FSDP2 = engines(8)
QWEN3 = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 40960}


def sized(config, dtype: str = "bfloat16") -> ModelSize:
    return measure(build(config, trust_remote_code=False), dtype=dtype)


@pytest.fixture(scope="module")
def student() -> ModelSize:
    """Qwen3-1.7B, loaded in float32."""
    sizes = {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144}
    return sized(Qwen3Config(**QWEN3, **sizes, tie_word_embeddings=True), "float32")


@pytest.fixture(scope="module")
def teacher() -> ModelSize:
    """Qwen3-8B, loaded in bfloat16."""
    sizes = {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288}
    return sized(Qwen3Config(**QWEN3, **sizes, tie_word_embeddings=False))


@pytest.fixture(scope="module")
def work(student, teacher) -> Workload:
    """Full fine-tuning of the student with the teacher, as in math/opd_qwen3_1.7b_from_8b without vLLM."""
    return Workload(
        student=student,
        teacher=teacher,
        teacher_kind="model",
        use_peft=False,
        adapter_parameters=17_432_576,
        linear_bits=None,
        mixed_precision=True,
        eight_bit_optimizer=False,
        reference_model=False,
        teacher_offload=False,
        teacher_batch_size=None,
        batch_size=2,
        generation_batch_size=8,
        prompt_length=512,
        teacher_prompt_length=1024,
        completion_length=4096,
        gradient_checkpointing=True,
        attention="sdpa",
        loss_memory_mib=None,
        generation="transformers",
        vllm_share=0.25,
        vllm_sleeps=False,
        gather_for_generation=True,
        gpu_memory=80 * GIB,
        device="cuda",
    )


def by_name(work: Workload, engine: Engine) -> dict[str, float]:
    return {part.name: part.bytes for part in estimate(work, engine)}


# Counting models


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


# Parameters, gradients and AdamW as torch allocates them


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [False, True])
def test_weights_gradients_and_adamw_are_the_bytes_that_torch_allocates(work, dtype, lora):
    model = tiny.build_model().to(getattr(torch, dtype))
    size = measure(model, dtype=dtype)
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(input_ids=torch.arange(6).unsqueeze(0)).logits.sum().backward()
    optimizer.step()
    moments = [s[key] for s in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]

    count = sum(p.numel() for p in trained) if lora else None
    work = replace(work, student=size, use_peft=lora, adapter_parameters=count, mixed_precision=False)
    parts = by_name(work, SINGLE)
    assert parts["student weights"] == sum(p.nbytes for p in model.parameters())
    assert parts["gradients"] == sum(p.grad.nbytes for p in trained)
    assert parts["optimizer state"] == sum(moment.nbytes for moment in moments)


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
    options = {"width": width, "stream": stream, "attention": attention, "adapters": False}
    per_token = layer_bytes_per_token(measure(model, dtype=dtype), 48, **options)
    assert per_token == pytest.approx((saved[1] - saved[0]) / (2 * 48), rel=0.02)


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


# Sharding


@pytest.mark.parametrize(
    ("engine", "sharded"),
    [
        (DDP, set()),
        (ZERO1, {"optimizer state"}),
        (ZERO2, {"optimizer state", "gradients"}),
        (ZERO3, {"optimizer state", "gradients", "student weights", "teacher weights"}),
        (FSDP2, {"optimizer state", "gradients", "student weights", "teacher weights"}),
    ],
)
def test_an_engine_divides_by_the_gpus_what_it_shards_and_nothing_else(work, engine, sharded):
    alone, together = by_name(work, replace(engine, gpus=1)), by_name(work, engine)
    assert {name for name in together if together[name] == alone.get(name, 0) / 8} == sharded
    rest = together.keys() - sharded - ({"communication"} if engine == DDP else set())
    assert all(together[name] == alone[name] for name in rest)


def test_deepspeed_steps_float32_weights_of_16_bit_ones(work, student):
    count = student.parameters
    parts = by_name(work, ZERO2)
    assert parts["student weights"] == 2 * count
    assert parts["gradients"] == 2 * count / 8
    assert parts["optimizer state"] == 12 * count / 8
    assert parts["communication"] == 2 * REDUCE_BUCKET


def test_fsdp2_keeps_what_it_trains_in_float32_and_lora_bases_as_loaded(work, student):
    loaded = replace(work, student=replace(student, width=2))
    assert by_name(loaded, FSDP2)["student weights"] == 4 * student.parameters / 8
    lora = by_name(replace(loaded, use_peft=True), FSDP2)
    assert lora["student weights"] == (2 * student.parameters + 4 * work.adapter_parameters) / 8


def test_ddp_holds_the_gradients_twice(work, student):
    assert by_name(work, DDP)["communication"] == by_name(work, DDP)["gradients"] == 4 * student.parameters
    assert "communication" not in by_name(work, SINGLE)


def test_what_is_offloaded_takes_nothing(work):
    assert "optimizer state" not in by_name(work, replace(ZERO2, offload_optimizer=True))
    parts = by_name(work, replace(ZERO3, offload_weights=True))
    assert not {"student weights", "teacher weights"} & parts.keys()


# Teachers and adapters


@pytest.mark.parametrize("kind", ["base", "live", "ema"])
def test_a_lora_student_needs_no_second_model_and_an_ema_one_adapter(work, student, kind):
    alone = replace(work, teacher=None, teacher_kind=kind, use_peft=True, reference_model=True)
    parts = by_name(alone, SINGLE)
    adapters = 2 if kind == "ema" else 1
    assert parts["student weights"] == 4 * student.parameters + adapters * 4 * work.adapter_parameters
    assert not {"teacher weights", "reference model"} & parts.keys()


@pytest.mark.parametrize(("kind", "copies"), [("base", 1), ("ema", 1), ("live", 0)])
def test_a_self_teacher_of_full_fine_tuning_is_a_copy_unless_it_is_live(work, student, kind, copies):
    parts = by_name(replace(work, teacher=None, teacher_kind=kind), SINGLE)
    assert parts.get("teacher weights", 0) == copies * 4 * student.parameters


def test_a_reference_model_is_a_copy_of_the_student(work, student):
    assert by_name(replace(work, reference_model=True), SINGLE)["reference model"] == 4 * student.parameters


@pytest.mark.parametrize("engine", engines(8), ids=lambda engine: engine.name)
def test_lora_counts_gradients_and_optimizer_state_of_the_adapter_alone(work, engine):
    parts = by_name(replace(work, use_peft=True), engine)
    width, state = (2, 12) if engine.deepspeed else (4, 8)
    assert parts["gradients"] == width * work.adapter_parameters / engine.shards(2)
    assert parts["optimizer state"] == state * work.adapter_parameters / engine.shards(1)
    assert "LM head gradient" not in parts


def test_a_quantized_linear_weight_takes_its_bits(work, student):
    parts = by_name(replace(work, use_peft=True, linear_bits=4.5), SINGLE)
    rest = student.parameters - student.linear_parameters
    assert parts["student weights"] == student.linear_parameters * 4.5 / 8 + rest * 4 + 2 * work.adapter_parameters


def test_an_8_bit_optimizer_keeps_two_bytes_a_weight(work, student):
    assert by_name(replace(work, eight_bit_optimizer=True), SINGLE)["optimizer state"] == 2 * student.parameters


def test_an_offloaded_teacher_leaves_its_head_and_comes_for_its_forward(work, teacher):
    offloaded = replace(work, teacher_offload=True)
    parts = {part.name: part for part in estimate(offloaded, ZERO2)}
    head = 2 * 151936 * 4096
    assert (parts["teacher's head"].bytes, parts["teacher's head"].moments) == (head, MOMENTS)
    assert parts["teacher's body"].bytes == 2 * teacher.parameters - head
    assert parts["teacher's body"].moments == (TEACHER,)
    assert "teacher weights" not in parts
    assert "teacher's head" not in by_name(offloaded, ZERO3)  # training refuses it


def test_a_teacher_that_scores_ahead_leaves_the_hidden_states_of_a_generation_batch(work):
    assert "scored ahead" not in by_name(work, ZERO2)
    ahead = by_name(replace(work, teacher_batch_size=8), ZERO2)
    assert ahead["scored ahead"] == 8 * 4096 * 4096 * 2
    assert ahead["teacher's forward"] == 4 * by_name(work, ZERO2)["teacher's forward"]


# The moments of a step


def test_the_loss_chunk_follows_its_budget_and_never_exceeds_the_tokens(work):
    default, small = by_name(work, SINGLE)["loss chunk"], by_name(replace(work, loss_memory_mib=256), SINGLE)
    assert default > GIB
    assert small["loss chunk"] < default / 2
    few = by_name(replace(work, batch_size=1, completion_length=3), SINGLE)["loss chunk"]
    assert few == 151936 * 3 * (2 * 4 + 2 + 4 * 4)


def test_the_head_has_a_float32_gradient_and_is_gathered_whole_where_it_is_sharded(work):
    assert by_name(work, ZERO2)["LM head gradient"] == 151936 * 2048 * 4
    assert "LM heads" not in by_name(work, ZERO2)
    for engine in (ZERO3, FSDP2):
        assert by_name(work, engine)["LM heads"] == 151936 * (2048 + 4096) * 2
        own = replace(work, teacher=None, teacher_kind="base", use_peft=True)
        assert by_name(own, engine)["LM heads"] == 151936 * 2048 * 2


def test_checkpointing_keeps_the_inputs_of_the_layers(work):
    tokens = 2 * (512 + 4096)
    assert by_name(work, ZERO2)["checkpoints"] == 28 * tokens * 2048 * 2
    assert by_name(work, SINGLE)["checkpoints"] == 28 * tokens * 2048 * 4  # float32 embeddings
    without = replace(work, gradient_checkpointing=False)
    assert by_name(without, ZERO2)["activations"] > 10 * by_name(work, ZERO2)["checkpoints"]


def test_a_flash_attention_keeps_no_mask(work, student):
    options = {"width": 2, "stream": 2, "adapters": False}
    sdpa, flash = (layer_bytes_per_token(student, 4608, attention=a, **options) for a in ("sdpa", "flash_attention_2"))
    assert sdpa - flash == 2 * 4608


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


def test_vllm_takes_its_share_always_or_only_while_it_generates_or_elsewhere(work):
    def vllm(**fields) -> list[tuple]:
        parts = estimate(replace(work, **fields), ZERO2)
        return [(part.bytes, part.moments) for part in parts if part.name == "vLLM, weights and cache"]

    assert vllm(generation="colocate") == [(20 * GIB, MOMENTS)]
    assert vllm(generation="colocate", vllm_sleeps=True) == [(20 * GIB, (GENERATION,))]
    assert vllm(generation="server") == []
    assert "KV cache" not in by_name(replace(work, generation="server"), ZERO2)


def test_fsdp2_gathers_a_separate_teacher_whole_and_zero3_up_to_its_limit(work, student, teacher):
    layer = by_name(work, ZERO2)["teacher's forward"]
    assert by_name(work, FSDP2)["teacher's forward"] - layer == 2 * teacher.parameters
    assert by_name(work, ZERO3)["teacher's forward"] - layer == 2 * MAX_LIVE_PARAMETERS
    own = replace(work, teacher=None, teacher_kind="base", use_peft=True)
    gathered = by_name(own, FSDP2)["teacher's forward"] - by_name(own, ZERO2)["teacher's forward"]
    assert gathered == 2 * 2 * student.layer_parameters


def test_a_longer_teacher_prompt_costs_the_teacher_alone(work):
    longer = by_name(replace(work, teacher_prompt_length=4096), ZERO2)
    parts = by_name(work, ZERO2)
    assert {name for name in parts if longer[name] != parts[name]} == {"teacher's forward"}


@pytest.mark.parametrize("engine", engines(8), ids=lambda engine: engine.name)
def test_the_total_is_the_sum_at_the_moment_that_takes_most(work, engine):
    parts = estimate(work, engine)
    sums = {m: sum(part.bytes for part in parts if m in part.moments) for m in MOMENTS}
    assert total(parts) == max(sums.values()) == max(at(parts, m) for m in MOMENTS)
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


# Advice


@pytest.mark.parametrize("engine", engines(8), ids=lambda engine: engine.name)
@pytest.mark.parametrize("generation", ["transformers", "colocate"])
def test_advice_saves_what_it_says_and_comes_in_the_order_of_it(work, engine, generation):
    work = replace(work, generation=generation, gradient_checkpointing=False)
    lines = advice(work, engine, engines(8))
    before = total(estimate(work, engine))
    assert lines
    assert [line.saves for line in lines] == sorted((line.saves for line in lines), reverse=True)
    assert all(line.saves > 0 and line.total == pytest.approx(before - line.saves) for line in lines)
    assert all(line.verdict == verdict(line.total, work.gpu_memory) for line in lines)


def test_each_change_of_the_advice_is_the_workload_that_it_names(work, student):
    def after(changed: Workload, engine: Engine = ZERO1) -> float:
        return total(estimate(changed, engine))

    work = replace(work, gradient_checkpointing=False, reference_model=True, generation="colocate")
    told = {line.change: line.total for line in advice(work, ZERO1, engines(8))}
    expected = {
        "--accelerate_config zero2": after(work, ZERO2),
        "--accelerate_config zero3": after(work, ZERO3),
        "--offload_optimizer_device cpu": after(work, replace(ZERO1, offload_optimizer=True)),
        "use_peft: true": after(replace(work, use_peft=True)),
        "beta: 0.0": after(replace(work, reference_model=False)),
        "gradient_checkpointing: true": after(replace(work, gradient_checkpointing=True)),
        "per_device_train_batch_size 2 -> 1, gradient_accumulation_steps x 2": after(replace(work, batch_size=1)),
        "max_completion_length 4096 -> 2048": after(replace(work, completion_length=2048)),
        "vllm_enable_sleep_mode: true": after(replace(work, vllm_sleeps=True)),
        "vllm_mode: server, on GPUs of its own": after(replace(work, generation="server")),
        "teacher_offload: cpu": after(replace(work, teacher_offload=True)),
    }
    assert {change: told.get(change) for change in expected} == expected


def test_a_frozen_float32_base_is_advised_into_16_or_4_bits(work, student):
    lora = replace(work, use_peft=True)
    told = {line.change: line.saves for line in advice(lora, SINGLE, engines(8))}
    assert told["dtype: bfloat16"] > 2 * student.parameters
    assert told["load_in_4bit: true"] > told["dtype: bfloat16"]


def test_advice_leaves_out_what_saves_nothing(work):
    told = [line.change for line in advice(replace(work, use_peft=True), ZERO2, engines(8))]
    assert not {"use_peft: true", "gradient_checkpointing: true", "dtype: bfloat16", "beta: 0.0"} & set(told)


def test_fewer_gpus_and_what_training_refuses_are_no_advice(work):
    told = [line.change for line in advice(work, DDP, engines(8))]
    assert not any("single_gpu" in change or "multi_gpu" in change for change in told)
    moving = replace(work, teacher=None, teacher_kind="ema")
    frozen = replace(work, teacher=None, teacher_kind="base")
    offloads = [any("offload: cpu" in a.change for a in advice(run, DDP, engines(8))) for run in (moving, frozen)]
    assert offloads == [False, True]


def test_no_sharding_engine_is_advised_to_a_run_with_an_offloaded_teacher(work):
    offloaded = replace(work, teacher_offload=True, teacher_batch_size=8)
    told = [line.change for line in advice(offloaded, DDP, engines(8))]
    assert {"--accelerate_config zero2", "teacher_batch_size: 1"} <= set(told)
    assert not {"--accelerate_config zero3", "--accelerate_config fsdp2", "teacher_offload: cpu"} & set(told)
    assert not any(line.change == "teacher_offload: cpu" for line in advice(work, ZERO3, engines(8)))
