"""SIGKILL in the middle of a run, then a resumed one: losses and weights equal those of an unbroken run, exactly."""

import os

import pytest
import torch

from tests.distributed.launch import needs_deepspeed, run_job


# 6 steps of 8 rows in epochs of 3 steps; a checkpoint every 2 steps, killed during the sixth: step 4 is the last one
# saved, in the middle of the second epoch, whose order of rows is not that of the first.
STEPS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "shuffle_dataset": True}
CASES = {
    "a separate teacher": {"kind": "opd"},
    "an EMA of a LoRA adapter": {"kind": "ema", "lora": True},
    "an EMA copy": {"kind": "ema", "options": {"teacher_update_rate": 0.5, "teacher_sync_steps": 3}},
    "completions that feed several steps": {"kind": "opd", "options": {"steps_per_generation": 3}},
}


def train_broken_and_unbroken(
    engine, tmp_path, *, per_device, student_path, teacher_path, kind, lora=False, options=None, spoilt=None
):
    setting = {"kind": kind, "lora": lora, "student": student_path, "teacher": teacher_path, "lengths": None}
    setting |= {"per_device": per_device, "accumulate": 1, "options": STEPS | (options or {})}
    unbroken = run_job(engine, tmp_path / "unbroken", **setting)
    with pytest.raises(RuntimeError, match="failed"):
        run_job(engine, tmp_path / "broken", kill_after=5, **setting)
    assert not (tmp_path / "broken" / "log.json").exists()
    if spoilt:
        os.truncate(tmp_path / "broken" / "checkpoint-4" / spoilt, 100)
    return unbroken, run_job(engine, tmp_path / "broken", resume=True, **setting)


def assert_equal(resumed, unbroken):
    assert len(resumed.log) == len(unbroken.log) == 6
    assert resumed.log == unbroken.log
    for name, parameter in unbroken.parameters.items():
        assert torch.equal(resumed.parameters[name], parameter), name


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, student_path, teacher_path, case):
    paths = {"student_path": student_path, "teacher_path": teacher_path}
    unbroken, resumed = train_broken_and_unbroken("1 process", tmp_path, per_device=8, **paths, **CASES[case])
    assert_equal(resumed, unbroken)


@needs_deepspeed
@pytest.mark.attack(
    "disk",
    "two processes under ZeRO-2 are killed, and of the newest checkpoint the optimizer's part of the second is cut",
    "both go on from the one before it, and end as an unbroken run",
)
def test_a_killed_run_under_zero_2_goes_on_from_the_whole_checkpoint(tmp_path, student_path, teacher_path):
    paths = {"student_path": student_path, "teacher_path": teacher_path}
    case = CASES["an EMA of a LoRA adapter"]
    case = case | {"spoilt": "global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt"}
    unbroken, resumed = train_broken_and_unbroken("ZeRO-2", tmp_path, per_device=4, **paths, **case)
    assert_equal(resumed, unbroken)
