"""`monitor_stop` in a job of two processes: one of them judges, both stop at one step, saved and in order."""

import json

import pytest

from tests.distributed.launch import needs_deepspeed, run_job


# Of 5 steps the log line of the second breaks a rule, on rank 0 alone. A job takes 10 to 20 s on two cores.
SETTING = {"kind": "opd", "per_device": 4, "accumulate": 1, "spoil_line": 2, "time_limit": 90}


@pytest.mark.parametrize(
    ("engine", "states"),
    [
        ("DDP", ["rng_state_0.pth", "rng_state_1.pth"]),
        pytest.param(
            "ZeRO-2",
            [f"global_step2/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)],
            marks=needs_deepspeed,
        ),
    ],
    ids=["DDP", "ZeRO-2"],
)
def test_both_ranks_save_and_stop_at_the_line_that_one_of_them_judges(
    tmp_path, student_path, teacher_path, engine, states
):
    options = {"max_steps": 5, "monitor_stop": True}
    models = {"student": student_path, "teacher": teacher_path}
    outcome = run_job(engine, tmp_path, **SETTING, **models, options=options)  # raises where a status is not 0
    assert [(tmp_path / f"last_step_{rank}.txt").read_text() for rank in (0, 1)] == ["2", "2"]
    assert len(outcome.log) == 2
    checkpoint = tmp_path / "checkpoint-2"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 2
    assert [name for name in states if not (checkpoint / name).exists()] == []
    (warning,) = [json.loads(line) for line in (tmp_path / "run_log" / "warnings.jsonl").read_text().splitlines()]
    assert (warning["rule"], warning["step"]) == ("loss_not_finite", 2)
    (session,) = json.loads((tmp_path / "run_log" / "run.json").read_text())["sessions"]
    assert session["outcome"] == "stopped by the monitor"
