"""Advice is what sizing the changed run gives."""

from dataclasses import replace

import pytest

from opd_trl.planning.component import total, verdict
from opd_trl.planning.sizing import estimate
from opd_trl.planning.totals import advice
from opd_trl.planning.workload import Engine, Teacher, Workload, engines
from tests.planning.sized import DDP, SINGLE, ZERO1, ZERO2, ZERO3


SERVER = "opd-trl serve-teacher, on GPUs of its own"


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
    served = replace(work.teachers[0], served=True)
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
        f"teacher_server_url: that of {SERVER}": after(replace(work, teachers=(served,))),
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
    moving = replace(work, teachers=(), teacher_kind="ema")
    frozen = replace(work, teachers=(), teacher_kind="base")
    offloads = [any("offload: cpu" in a.change for a in advice(run, DDP, engines(8))) for run in (moving, frozen)]
    assert offloads == [False, True]


def test_no_sharding_engine_is_advised_to_a_run_with_an_offloaded_teacher(work):
    offloaded = replace(work, teacher_offload=True, teacher_batch_size=8)
    told = [line.change for line in advice(offloaded, DDP, engines(8))]
    assert {"--accelerate_config zero2", "teacher_batch_size: 1"} <= set(told)
    assert not {"--accelerate_config zero3", "--accelerate_config fsdp2", "teacher_offload: cpu"} & set(told)
    assert not any(line.change == "teacher_offload: cpu" for line in advice(work, ZERO3, engines(8)))


def test_an_offloaded_teacher_may_be_served_instead(work, teacher):
    offloaded = replace(work, teacher_offload=True)
    told = {line.change: line.total for line in advice(offloaded, DDP, engines(8))}
    served = replace(work, teachers=(Teacher("", teacher, served=True),))
    assert told[f"teacher_server_url: that of {SERVER}"] == total(estimate(served, DDP))


def test_a_served_teacher_needs_no_advice_on_its_weights_but_fewer_completions_at_a_time(work, teacher):
    work = replace(work, teachers=(Teacher("", teacher, served=True),), generation="server")
    work = replace(work, teacher_batch_size=8, generation_batch_size=64)
    told = {line.change: line.saves for line in advice(work, DDP, engines(8))}
    assert not any("teacher_" in change for change in told)
    assert told["steps_per_generation 32 -> 16"] == 32 * 4096 * 4096 * 2


def test_of_several_teachers_those_that_are_here_are_advised_to_servers(work, student, teacher):
    several = replace(work, teachers=(Teacher("math", teacher), Teacher("code", student, served=True)))
    told = {line.change: line.total for line in advice(several, DDP, engines(8))}
    served = tuple(replace(one, served=True) for one in several.teachers)
    assert told[f"teachers: URLs of {SERVER}"] == total(estimate(replace(several, teachers=served), DDP))
    assert not any("teacher_server_url" in change for change in told)
