"""A sibling's success as privileged context."""

import pytest
import torch

from opd_trl import OPSDConfig
from tests import tiny
from tests.trainers.build import fixed_batch, opsd_trainer


GROUP = 4


def reward_by_row(verdicts):
    """A reward that gives the rows of a batch these verdicts, in order."""

    def reward(completions, **kwargs):
        return [float(verdicts[i % len(verdicts)]) for i in range(len(completions))]

    return reward


def build(tmp_path, student_path, verdicts, *, dataset=None, **options):
    return opsd_trainer(
        tmp_path,
        student_path,
        dataset=tiny.questions(8) if dataset is None else dataset,
        trainer_options={"reward_funcs": reward_by_row(verdicts)},
        sibling_context=True,
        num_generations=GROUP,
        per_device_train_batch_size=8,
        privileged_builder="solution",
        policy_coef=0.0,
        **options,
    )


def batch_of(trainer):
    rows = [trainer.train_dataset[i // GROUP] for i in range(8)]
    return rows, fixed_batch(trainer, rows)


def read(trainer, batch, row, prefix):
    ids = batch[f"{prefix}prompt_ids"][row][batch[f"{prefix}prompt_mask"][row].bool()]
    return trainer.processing_class.decode(ids)


def test_the_teacher_reads_the_first_other_success_of_the_same_prompt(tmp_path, student_path):
    trainer = build(tmp_path, student_path, [False, True, False, True, False, False, False, True])
    _, batch = batch_of(trainer)
    texts = [
        trainer.processing_class.decode(ids[mask.bool()], skip_special_tokens=True).strip()
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    taught_by = {0: 1, 1: 3, 2: 1, 3: 1, 4: 7, 5: 7, 6: 7}
    for row, sibling in taught_by.items():
        assert f"a reference solution:\n{texts[sibling]}" in read(trainer, batch, row, "teacher_")
        assert (batch["loss_mask"][row] == batch["completion_mask"][row]).all()
    # the only success of its prompt teaches the others, not itself
    assert read(trainer, batch, 7, "teacher_") == read(trainer, batch, 7, "")
    assert batch["loss_mask"][7].sum() == 0
    assert batch["num_loss_tokens"] == batch["completion_mask"][:7].sum()
    assert trainer._metrics["train"]["distillation/has_context"] == [7 / 8]


def test_without_a_success_the_rows_own_column_is_read_and_without_that_there_is_no_loss(tmp_path, student_path):
    dataset = tiny.questions(8, privileged_context=["Mind the carry.", ""] * 4)
    trainer = build(tmp_path, student_path, [False], dataset=dataset)
    _, batch = batch_of(trainer)
    assert all("Mind the carry." in read(trainer, batch, row, "teacher_") for row in range(GROUP))
    assert batch["loss_mask"][:GROUP].sum() > 0
    assert batch["loss_mask"][GROUP:].sum() == 0


def test_a_step_in_which_nobody_succeeds_trains_nothing_and_does_not_fail(tmp_path, student_path):
    trainer = build(tmp_path, student_path, [False], weight_decay=0.0)
    before = {name: x.clone() for name, x in trainer.model.named_parameters()}
    trainer.train()
    assert all(torch.equal(x, before[name]) for name, x in trainer.model.named_parameters())


def test_it_trains_and_logs_how_many_completions_had_a_context(tmp_path, student_path):
    trainer = build(tmp_path, student_path, [True, False], max_steps=2)
    trainer.train()
    (row, *_) = [row for row in trainer.state.log_history if "loss" in row]
    assert row["distillation/has_context"] == 1.0
    assert row["loss"] != 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs several completions of a prompt, and num_generations is 1. Set num_generations: 8"),
        ({"num_generations": 4, "privileged_context": "x"}, "together with a privileged context that all rows share"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OPSDConfig(output_dir="out", use_cpu=True, sibling_context=True, **options)


def test_it_needs_rewards(tmp_path, student_path):
    with pytest.raises(ValueError, match="sibling_context needs reward_funcs"):
        opsd_trainer(tmp_path, student_path, sibling_context=True, num_generations=4, dataset=tiny.questions(8))
