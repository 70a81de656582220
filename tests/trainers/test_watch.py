"""`monitor_eval_prompts`: rows that are not trained on, looked at while a run goes on."""

import pytest

from opd_trl import OPDConfig
from opd_trl.diagnostics import Monitor
from opd_trl.trainers.looks.watch import WatchHeldOut
from tests import tiny
from tests.trainers.build import opd_trainer


def trainer_of(tmp_path, student_path, teacher_path, **options):
    options = {"max_steps": 5, "per_device_train_batch_size": 2, "monitor_eval_steps": 2} | options
    return opd_trainer(tmp_path, student_path, teacher_path, dataset=tiny.questions(32), logging_steps=1, **options)


def watch_of(trainer) -> WatchHeldOut | None:
    return next((x for x in trainer.callback_handler.callbacks if isinstance(x, WatchHeldOut)), None)


def looks_in(trainer) -> dict[int, float]:
    log = trainer.state.log_history
    return {line["step"]: line["held_out/divergence"] for line in log if "held_out/divergence" in line}


def test_the_log_has_the_exact_divergence_on_rows_that_are_not_trained_on(tmp_path, student_path, teacher_path):
    trainer = trainer_of(tmp_path, student_path, teacher_path, monitor_eval_prompts=3)
    held = {str(row["prompt"]) for row in watch_of(trainer).held_out.rows}
    assert len(held) == 4  # whole batches
    assert not held & {str(prompt) for prompt in trainer.train_dataset["prompt"]}
    before = watch_of(trainer).held_out.measure()["divergence"]
    trainer.train()
    looks = looks_in(trainer)
    assert list(looks) == [1, 2, 4]  # the first one, before any step, stands in the first line
    assert looks[1] == pytest.approx(sum(before) / len(before), rel=1e-5)
    assert len(set(looks.values())) == 3


def test_a_run_that_goes_on_holds_the_same_rows_out(tmp_path, student_path, teacher_path):
    options = {"monitor_eval_prompts": 4, "save_strategy": "steps", "save_steps": 3}
    first, again = (trainer_of(tmp_path, student_path, teacher_path, **options) for _ in range(2))
    first.train()
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert watch_of(again).held_out.rows == watch_of(first).held_out.rows
    assert looks_in(again) == pytest.approx(looks_in(first), rel=1e-6)


def test_without_them_nothing_is_held_out(tmp_path, student_path, teacher_path):
    trainer = trainer_of(tmp_path, student_path, teacher_path)
    assert watch_of(trainer) is None
    assert len(trainer.train_dataset) == 32


@pytest.mark.parametrize(
    ("series", "fires"),
    [([0.4, 0.5, 0.6], True), ([0.4, 0.6, 0.5], False), ([0.4, 0.45, 0.46], False), ([0.4, 0.3, 0.2], False)],
    ids=str,
)
def test_a_divergence_that_has_risen_and_does_not_fall_again_is_warned_of(series, fires):
    rules = Monitor(settings={})
    lines = ({"held_out/divergence": value} for value in series)
    fired = [warning.rule for step, line in enumerate(lines) for warning in rules.update(step, line)]
    assert fired == ["held_out_rises"] * fires


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor_eval_prompts": -1}, "monitor_eval_prompts must be >= 0"),
        ({"monitor_eval_steps": 0}, "monitor_eval_steps >= 1"),
        ({"monitor_eval_prompts": 4, "monitor": False}, "nobody would look at them. Set monitor: true"),
    ],
    ids=str,
)
def test_settings_that_look_at_nothing_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        OPDConfig(str(tmp_path), use_cpu=True, bf16=False, **options)


def test_more_rows_than_there_are_to_spare_are_refused(tmp_path, student_path, teacher_path):
    with pytest.raises(ValueError, match=r"10 held-out prompts are more than a quarter of the 32 rows.*8 or fewer"):
        trainer_of(tmp_path, student_path, teacher_path, monitor_eval_prompts=9)
