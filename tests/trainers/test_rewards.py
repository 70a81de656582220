"""Rewards beside distillation: the gate, the weight's schedule, the built-in reward."""

from types import SimpleNamespace

import pytest
import torch

from opd_trl import OPDConfig
from opd_trl.evaluation import math_accuracy
from opd_trl.trainers.rewards import distillation_coef, gate
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, settings


def right_where_the_row_is_even(completions, row, **kwargs):
    return [float(number % 2 == 0) for number in row]


def gated_trainer(tmp_path, student_path, teacher_path, which, **options):
    return opd_trainer(
        tmp_path,
        student_path,
        teacher_path,
        dataset=tiny.questions(row=list(range(8))),
        trainer_options={"reward_funcs": right_where_the_row_is_even},
        distillation_gate=which,
        gradient_accumulation_steps=2,
        **options,
    )


@pytest.mark.parametrize(("which", "opens_for"), [("correct", 0), ("incorrect", 1)])
def test_only_completions_that_the_gate_lets_through_are_distilled(
    tmp_path, student_path, teacher_path, which, opens_for
):
    trainer = gated_trainer(tmp_path, student_path, teacher_path, which)
    batch = fixed_batch(trainer)
    is_open = torch.arange(8) % 2 == opens_for
    kept = batch["completion_mask"] * is_open[:, None]
    assert torch.equal(batch["loss_mask"], kept)
    assert batch["num_loss_tokens"] == kept.sum() > 0
    assert trainer._metrics["train"]["distillation/gate_open"] == [0.5]


def test_the_gate_changes_the_loss_to_that_of_the_open_rows_alone(tmp_path, student_path, teacher_path):
    trainer = gated_trainer(tmp_path, student_path, teacher_path, "correct", policy_coef=0.0)
    batch = fixed_batch(trainer)
    trainer.current_gradient_accumulation_steps = 1
    trainer.args.steps_per_generation = 1
    loss = trainer._compute_loss(trainer.model, batch)
    rows = {key: x[::2] if x.ndim else x for key, x in batch.items()}
    torch.testing.assert_close(loss, trainer._compute_loss(trainer.model, rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"answer": ["7"] * 5 + ["$$"] + ["7"] * 2},
            r"row 5 of the train set: .* cannot read the answer '\$\$'",
        ),
        ({"answer": ["7"] * 7 + [None]}, "row 7 of the train set: .* cannot read the answer None"),
        ({"answer": [[7], []] + [[7]] * 6}, r"row 1 of the train set: .* cannot read the answer \[\]"),
        ({"gold": ["7"] * 8}, "the train set has no column 'answer', it has 'prompt', 'gold'"),
    ],
)
def test_a_right_answer_that_cannot_be_read_is_named_before_anything_is_sampled(
    tmp_path, student_path, teacher_path, columns, message
):
    rewards = {"reward_funcs": [math_accuracy, right_where_the_row_is_even]}
    dataset = tiny.questions(**columns)
    with pytest.raises(ValueError, match=message):
        opd_trainer(tmp_path, student_path, teacher_path, dataset=dataset, trainer_options=rewards)


def test_a_gate_without_rewards_is_refused(tmp_path, student_path, teacher_path):
    with pytest.raises(ValueError, match=r"distillation_gate='incorrect' needs reward_funcs .* e.g. math_accuracy"):
        opd_trainer(tmp_path, student_path, teacher_path, distillation_gate="incorrect")


def test_the_gate_weighs_rewards_and_leaves_out_what_no_function_scored(tmp_path):
    nan = float("nan")
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [nan, 1.0], [nan, nan]])
    weights = torch.tensor([1.0, 0.25])
    for which, expected in (("correct", [True, False, False, False]), ("incorrect", [False, True, True, False])):
        args = OPDConfig(**settings(tmp_path, distillation_gate=which))
        assert gate(args, rewards, weights).tolist() == expected
    args = OPDConfig(**settings(tmp_path, distillation_gate="correct", distillation_gate_threshold=0.25))
    assert gate(args, rewards, weights).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [2.0, 2.0, 2.0]),
        ({"distillation_coef_schedule": "linear"}, [2.0, 1.0, 0.0]),
        ({"distillation_coef_schedule": "linear", "distillation_coef_end": 4.0}, [2.0, 3.0, 4.0]),
    ],
)
def test_the_weight_of_the_distillation_follows_its_schedule(tmp_path, options, expected):
    args = OPDConfig(**settings(tmp_path, distillation_coef=2.0, **options))
    states = [SimpleNamespace(global_step=step, max_steps=10) for step in (0, 5, 10)]
    assert [distillation_coef(args, state) for state in states] == expected


def test_a_linear_schedule_reaches_the_loss_that_is_trained(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, distillation_coef_schedule="linear")
    batch = fixed_batch(trainer)
    trainer.state.max_steps = 4
    whole = trainer._compute_loss(trainer.model, batch)
    trainer.state.global_step = 3
    torch.testing.assert_close(trainer._compute_loss(trainer.model, batch), whole / 4)
