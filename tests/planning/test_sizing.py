"""What is always there, against models that are really built and steps that are really taken."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from opd_trl.planning.component import REDUCE_BUCKET
from opd_trl.planning.model_size import measure
from opd_trl.planning.workload import engines
from tests import tiny
from tests.planning.sized import DDP, FSDP2, SINGLE, ZERO1, ZERO2, ZERO3, by_name


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


def test_a_reference_model_is_a_copy_of_the_student(work, student):
    for anchor, extrapolates, copies in ((True, False, 1), (False, True, 1), (True, True, 2), (False, False, 0)):
        parts = by_name(replace(work, reference_model=anchor, extrapolates=extrapolates), SINGLE)
        assert parts.get("reference model", 0) == copies * 4 * student.parameters


@pytest.mark.parametrize("engine", engines(8), ids=lambda engine: engine.name)
def test_lora_counts_gradients_and_optimizer_state_of_the_adapter_alone(work, engine):
    parts = by_name(replace(work, use_peft=True), engine)
    width, state = (2, 12) if engine.deepspeed else (4, 8)
    assert parts["gradients"] == width * work.adapter_parameters / engine.shards(2)
    assert parts["optimizer state"] == state * work.adapter_parameters / engine.shards(1)
    assert "LM head gradient" not in parts


def test_a_quantized_linear_weight_takes_its_bits(work, student):
    parts = by_name(replace(work, use_peft=True, student=replace(student, linear_bits=4.5)), SINGLE)
    rest = student.parameters - student.linear_parameters
    assert parts["student weights"] == student.linear_parameters * 4.5 / 8 + rest * 4 + 2 * work.adapter_parameters


def test_an_8_bit_optimizer_keeps_two_bytes_a_weight(work, student):
    assert by_name(replace(work, eight_bit_optimizer=True), SINGLE)["optimizer state"] == 2 * student.parameters
