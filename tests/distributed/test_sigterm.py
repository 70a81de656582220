"""SIGTERM in a job of two processes: it reaches one of them, both stop at one step, which is saved."""

import json

import pytest

from tests.distributed.launch import run_job


@pytest.mark.attack(
    "processes", "SIGTERM to one of two training processes, with `enable_jit_checkpoint`", "both save the same step"
)
def test_both_ranks_save_and_stop_where_one_of_them_is_told_to(tmp_path, student_path, teacher_path):
    setting = {"kind": "opd", "per_device": 4, "accumulate": 1, "sigterm_in": 2, "time_limit": 90}
    setting |= {"student": student_path, "teacher": teacher_path}
    options = {"max_steps": 5, "enable_jit_checkpoint": True}
    outcome = run_job("DDP", tmp_path, **setting, options=options)  # raises where a status is not 0
    last = [int((tmp_path / f"last_step_{rank}.txt").read_text()) for rank in (0, 1)]
    assert last[0] == last[1] == len(outcome.log) < 5
    checkpoint = tmp_path / f"checkpoint-{last[0]}"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == last[0]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
