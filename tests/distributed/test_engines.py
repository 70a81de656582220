"""A few cells of the equivalence matrix (`make matrix` runs all): an engine trains as one process does."""

import pytest

from opd_trl.trainers.generation.plans import is_own
from tests.distributed.launch import deviation, needs_deepspeed, run_job


# A reference model beside the teacher, and weights for tokens of the step before.
EXOPD = {"method": "exopd", "loss_importance_cap": 1.02, "learning_rate": 1e-2, "num_iterations": 2}
# By tokens: the 4 rows of the first step make 4 micro-batches in the 2 calls of transformers on each rank, since those
# of the first rank are long and the ranks must agree; those of the second step make one.
BY_TOKENS = {"micro_batch_tokens": 144}
LENGTHS = [58, 49, 60, 51, 2, 3, 1, 2, 2, 3, 2, 1, 3, 2, 1, 3, 60, 4, 9, 20, 7, 55, 30, 2]

GIVEN = {"lmbda": 0.0}

CELLS = {
    "micro-batches": ("1 process", 2, 4, {"kind": "base", "lora": False}),
    "DDP, LoRA, by tokens": ("DDP", 2, 2, {"kind": "base", "lora": True}),
    "DDP, given text": ("DDP", 2, 2, {"kind": "base", "lora": True, "lengths": None, "options": GIVEN}),
    "FSDP2, EMA copy": ("FSDP2", 4, 1, {"kind": "ema", "lora": False}),
    "FSDP2, ExOPD, by tokens": ("FSDP2", 2, 2, {"kind": "opd", "lora": False, "options": EXOPD}),
    "ZeRO-3, ExOPD, by tokens": ("ZeRO-3", 2, 2, {"kind": "opd", "lora": False, "options": EXOPD}),
    "ZeRO-3, EMA adapter": ("ZeRO-3", 2, 2, {"kind": "ema", "lora": True}),
}


@pytest.mark.parametrize("cell", [pytest.param(x, marks=needs_deepspeed) if "ZeRO" in x else x for x in CELLS])
def test_an_engine_gives_the_losses_and_weights_of_one_process(tmp_path, student_path, teacher_path, cell):
    engine, per_device, accumulate, setting = CELLS[cell]
    setting |= {"student": student_path, "teacher": teacher_path}
    if "by tokens" in cell:
        setting |= {"lengths": LENGTHS, "options": {"max_completion_length": 60} | setting.get("options", {})}
    reference = run_job("1 process", tmp_path / "reference", per_device=8, accumulate=1, **setting)
    if "by tokens" in cell:
        setting |= {"options": setting["options"] | BY_TOKENS}
    outcome = run_job(engine, tmp_path / "engine", per_device=per_device, accumulate=accumulate, **setting)
    assert abs(reference.log[0]["loss"]) > 0.05
    assert reference.log[0]["loss"] != reference.log[-1]["loss"]
    assert max(deviation(outcome, reference).values()) < 1e-5


def test_ranks_draw_the_same_kind_of_text_go_on_behind_prefixes_and_stop_at_one_limit(
    tmp_path, student_path, teacher_path
):
    options = {"lmbda": 0.5, "seed": 1, "max_steps": 6, "teacher_prefix_tokens": 2, "rollout_length_start": 5}
    options |= {"rollout_length_end": 5, "max_completion_length": 16}
    models = {"student": student_path, "teacher": teacher_path, "lengths": None}
    log = run_job("DDP", tmp_path, kind="opd", per_device=4, accumulate=1, options=options, **models).log
    own = [is_own(1, step, 0, 0.5) for step in range(6)]
    assert {True, False} == set(own)
    assert ["distillation/given/per_token_divergence" not in line for line in log] == own
    assert [line.get("completions/partial/max_length", 0) > 0 for line in log] == own
    assert max(line.get("completions/partial/max_length", 0) for line in log) <= 5
