"""Three steps of each trainer on the device, under bfloat16 autocast with gradient checkpointing."""

import functools
import time

import pytest
import torch

from opd_trl.teachers.model_teacher import body
from tests.gpu.runs import KINDS, MICRO_BATCHES, STEPS, build, distances, train


@pytest.fixture(scope="session")
def in_float32(tmp_path_factory):
    """The same run on the CPU in float32, without autocast and checkpointing, by kind."""
    plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    return functools.cache(lambda kind: train(build(kind, tmp_path_factory.mktemp("float32"), **plain)))


@pytest.fixture(scope="session")
def run_of(place, tmp_path_factory):
    """The run of a kind on the device."""
    return functools.cache(lambda kind: train(build(kind, tmp_path_factory.mktemp("run"), **place.training)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_that_of_float32_on_the_cpu_and_each_model_reads_a_micro_batch_once(
    place, in_float32, run_of, note, kind
):
    expected, found = in_float32(kind), run_of(kind)
    assert found.precision == "bf16"
    assert found.devices == {place.device.type}
    once, is_one_module = STEPS * MICRO_BATCHES, kind in ("base lora", "ema lora")
    asked = int(kind.startswith("base"))  # as training begins: is the frozen self-teacher what it was?
    asked += int(kind.startswith(("base", "ema")))  # its first rows, which begin alike: as a tree, and one by one
    expected_forwards = (2 * once + asked, 0) if is_one_module else (once, once + asked)
    assert (found.student_forwards, found.teacher_forwards) == expected_forwards
    assert len(found.losses) == STEPS
    assert found.losses[-1] < 0.95 * found.losses[0]
    errors = distances(found, expected)
    note(f"{STEPS} steps, {kind}", torch.bfloat16, **errors)
    assert ("teacher" in errors) == kind.startswith("ema")
    # Numbers of 8 bits; a weight of 16 bits moves by its last one.
    assert errors.pop("loss") < 0.02
    assert max(errors.values()) < (0.3 if "16-bit weights" in kind else 0.1)


def test_an_offloaded_teacher_gives_the_same_run_and_rests_on_the_cpu(place, run_of, note, tmp_path):
    trainer = build("opd full", tmp_path, teacher_offload="cpu", **place.training)
    errors = distances(train(trainer), run_of("opd full"))
    assert {x.device.type for x in body(trainer.teacher.model)} == {"cpu"}
    assert trainer.teacher.model.get_output_embeddings().weight.device.type == place.device.type
    note("offloaded teacher against one that stays", torch.bfloat16, **errors)
    assert errors["loss"] < 0.005  # it scores whole generation batches, padded to another width
    assert errors["student"] < 0.05


@pytest.mark.parametrize("kind", ["ema full", "ema lora"])
def test_a_resumed_run_goes_on_with_its_moving_teacher(place, run_of, note, tmp_path, kind):
    options = place.training | {"save_strategy": "steps", "save_steps": STEPS - 1}
    train(build(kind, tmp_path, **options))
    resumed = build(kind, tmp_path, **options)
    found = train(resumed, resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{STEPS - 1}"))
    errors = distances(found, run_of(kind))
    note(f"resumed run, {kind}", torch.bfloat16, **errors)
    assert resumed.state.global_step == STEPS
    assert max(errors.values()) < 1e-3


def test_the_phases_of_a_step_add_up_to_no_more_than_its_time(place, note, tmp_path):
    """With generation on the device; a first run loads libraries and is not looked at."""
    for folder in ("first", "second"):
        trainer = build("opd full", tmp_path / folder, trainer_options={}, **place.training)
        start = time.perf_counter()
        trainer.train()
        if place.on_cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    lines = [line for line in trainer.state.log_history if "step_time" in line]
    phases = {name: sum(line[f"time/{name}"] for line in lines) for name in ("generation", "teacher", "student")}
    step_time = sum(line["step_time"] for line in lines)
    note("seconds of a run", **phases, steps=step_time, wall=wall)
    assert len(lines) == STEPS
    assert min(phases.values()) > 0
    assert 0.5 * step_time < sum(phases.values()) < wall
