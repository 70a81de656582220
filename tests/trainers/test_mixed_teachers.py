"""One target from several teachers: the loss is the one against the mean of their whole distributions."""

import math

import pytest
import torch

from opd_trl import OPDConfig, OPSDConfig
from opd_trl.losses import support_divergence
from opd_trl.teachers.several.mixed import MixedTeacher
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, settings


MIX = {"math": 0.7, "code": 0.3}


@pytest.fixture(scope="session")
def wide_path(tmp_path_factory) -> str:
    """A second teacher, of another width."""
    return tiny.save(tmp_path_factory.mktemp("wide"), seed=2, hidden_size=64)


@pytest.fixture
def teachers(teacher_path, wide_path) -> dict[str, str]:
    return {"math": teacher_path, "code": wide_path}


def log_probs(model, batch, temperature):
    """Of all next tokens at the kept positions, `[N, V]`, by the model's own forward."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    logits = logits[:, batch["prompt_ids"].size(1) - 1 : -1]
    return (logits[batch["loss_mask"].bool()] / temperature).log_softmax(-1)


def expected_loss(trainer, batch, weights):
    """From the mean in probabilities; `weights` `(B, 2)`."""
    with torch.no_grad():
        log_q = torch.stack([log_probs(x.model, batch, 1.0) for x in trainer.teacher.parts])
    kept = batch["loss_mask"].bool()
    shares = weights[:, None].expand(*kept.shape, 2)[kept].T.unsqueeze(-1)
    if trainer.teacher.mean == "arithmetic":
        target = (shares * log_q.exp()).sum(0).log()
    else:
        target = (shares * log_q).sum(0).log_softmax(-1)
    log_p = log_probs(trainer.model, batch, 1.0)
    return support_divergence(log_p, target, tail="drop").sum() / kept.sum()


ROWS = [{"math": 0.5, "code": 0.5}, {"math": 1.0}, {"code": 1.0, "math": 0.0}, {"math": 0.25, "code": 0.75}] * 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"teacher_mean": "geometric"},
        {"teacher_batch_size": 3},
        {"teacher_offload": "cpu", "teacher_mean": "geometric"},
        {"teacher_mix": "shares"},
        {"teacher_mix": "shares", "teacher_batch_size": 3},
    ],
    ids=str,
)
def test_the_loss_is_the_one_against_the_mean_of_the_teachers(tmp_path, student_path, teachers, options):
    trainer = opd_trainer(
        tmp_path, student_path, None,
        dataset=tiny.questions(shares=ROWS), teachers=teachers, per_device_train_batch_size=8, loss_support="full",
        **{"teacher_mix": MIX, "temperature": 1.0} | options,
    )  # fmt: skip
    torch.manual_seed(0)
    batch = fixed_batch(trainer)
    trainer.model.eval()
    loss = trainer._compute_loss(trainer.model, batch)
    rows = torch.tensor([[0.7, 0.3]] * 8)
    if "shares" in options.values():
        rows = batch["teacher_weights"]
        assert sorted(rows.tolist()) == sorted([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.25, 0.75]] * 2)
    torch.testing.assert_close(loss, expected_loss(trainer, batch, rows), rtol=1e-5, atol=1e-6)
    trainer.model.train()


def test_a_run_trains_evaluates_and_says_who_teaches(tmp_path, student_path, teachers):
    trainer = opd_trainer(
        tmp_path, student_path, None,
        dataset=tiny.questions(shares=ROWS), teachers=teachers, teacher_mix="shares", micro_batch_tokens=64,
        trainer_options={"eval_dataset": tiny.questions(shares=ROWS)},
    )  # fmt: skip
    before = [x.clone() for x in trainer.model.parameters()]
    trainer.train()
    assert any((a != b).any() for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert math.isfinite(trainer.evaluate()["eval_distillation/per_token_divergence"])
    assert isinstance(trainer.teacher, MixedTeacher)
    assert "arithmetic mean of math (" in trainer.teacher.source(trainer)


def test_teachers_can_be_models_given_by_name(tmp_path, student_path, teacher_path):
    teachers = {"math": teacher_path, "code": tiny.build_model(seed=3)}
    trainer = opd_trainer(tmp_path, student_path, teachers, teacher_mix=MIX)
    trainer.train()
    assert trainer.state.global_step == 1


WRONG = {
    "no sum of 1": ({"math": 0.7, "code": 0.2}, r"the weights in {} sum to 0\.9\. Make them sum to 1"),
    "negative": ({"math": 1.5, "code": -0.5}, r"{} gives 'code' the weight -0\.5\. Give a number from 0 to 1"),
    "an unknown name": (
        {"math": 0.5, "coda": 0.5},
        r"{} gives a weight to 'coda', and .* 'code'. Did you mean code\?",
    ),
    "all zero": ({"math": 0.0, "code": 0.0}, r"the weights in {} sum to 0\."),
}


@pytest.mark.parametrize(("weights", "message"), WRONG.values(), ids=WRONG)
def test_wrong_weights_stop_before_anything_is_written(tmp_path, student_path, teachers, weights, message):
    with pytest.raises(ValueError, match=message.format("teacher_mix")):
        opd_trainer(tmp_path, student_path, None, teachers=teachers, teacher_mix=weights)
    for where in ("train", "eval"):
        bad = tiny.questions(shares=[*ROWS[:5], weights, *ROWS[6:]])
        train, evaluation = (bad, None) if where == "train" else (tiny.questions(shares=ROWS), bad)
        with pytest.raises(ValueError, match=message.format(f"column 'shares' of row 5 of the {where} set")):
            opd_trainer(
                tmp_path, student_path, None,
                dataset=train, teachers=teachers, teacher_mix="shares",
                trainer_options={"eval_dataset": evaluation},
            )  # fmt: skip
    assert not (tmp_path / "out").exists()


OTHERS = {
    "NaN": (MIX | {"code": math.nan}, "teacher_mix.code must be a finite number, got nan"),
    "text": ({"math": "0.7", "code": 0.3}, "teacher_mix gives 'math' the weight '0.7'"),
    "left out": ({"math": 1.0}, "teacher_mix gives no weight to 'code'. Give one"),
    "a list": ([0.7, 0.3], r"teacher_mix must map teachers to weights, got \[0\.7, 0\.3\]"),
    "no such column": ("shares", "the train set has no column 'shares', it has 'prompt'. .* maps them to weights"),
}


@pytest.mark.parametrize(("mix", "message"), OTHERS.values(), ids=OTHERS)
def test_other_mixes_that_cannot_be_are_refused(tmp_path, student_path, teachers, mix, message):
    with pytest.raises((ValueError, TypeError), match=message):
        opd_trainer(tmp_path, student_path, None, teachers=teachers, teacher_mix=mix)
    assert not (tmp_path / "out").exists()


def test_a_row_without_weights_or_with_nan_names_its_row(tmp_path, student_path, teachers):
    for bad, message in (
        (None, "column 'shares' of row 2 of the train set must map teachers to weights, got None"),
        ({"math": math.nan, "code": 0.5}, "column 'shares' of row 2 of the train set gives 'math' the weight nan"),
    ):
        rows = tiny.questions(shares=[*ROWS[:2], bad, *ROWS[3:]])
        with pytest.raises(ValueError, match=message):
            opd_trainer(tmp_path, student_path, None, dataset=rows, teachers=teachers, teacher_mix="shares")
    stream = tiny.questions(shares=[{"math": 0.5, "code": 0.2}] * 8).to_iterable_dataset()
    trainer = opd_trainer(tmp_path, student_path, None, dataset=stream, teachers=teachers, teacher_mix="shares")
    with pytest.raises(ValueError, match=r"column 'shares' of row 0 of this batch sum to 0\.7"):
        trainer.train()


def test_a_mix_needs_several_teachers(tmp_path, student_path, teacher_path):
    message = "teacher_mix=.* makes one target of several teachers, and there is one"
    with pytest.raises(ValueError, match=message):
        OPDConfig(**settings(tmp_path, teacher_model_name_or_path="x", teacher_mix=MIX))
    with pytest.raises(ValueError, match=message):
        opd_trainer(tmp_path, student_path, teacher_path, teacher_mix=MIX)
    with pytest.raises(ValueError, match=r"teacher_mix=.* the teacher is the student itself"):
        OPSDConfig(**settings(tmp_path, teacher_mix=MIX))


def test_the_mapping_can_be_json_as_on_the_command_line(tmp_path):
    given = {"teachers": '{"math": "a", "code": "b"}', "teacher_mix": '{"math": 0.7, "code": 0.3}'}
    assert OPDConfig(**settings(tmp_path, **given)).teacher_mix == MIX


def test_a_mean_that_nothing_reads_is_told(tmp_path, caplog):
    OPDConfig(**settings(tmp_path, teacher_mean="geometric"))
    assert "teacher_mean='geometric' has no effect here. It needs teacher_mix." in caplog.text
