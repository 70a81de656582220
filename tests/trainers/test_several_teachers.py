"""Several teachers: each row is scored by the one that it names."""

import pytest
import torch

from opd_trl import OPDConfig
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, settings


NAMES = ["math", "code", "math", "code", "code", "math", "math", "code"]


@pytest.fixture(scope="session")
def wide_path(tmp_path_factory) -> str:
    """A second teacher, of another width."""
    return tiny.save(tmp_path_factory.mktemp("wide"), seed=2, hidden_size=64)


@pytest.fixture
def teachers(teacher_path, wide_path) -> dict[str, str]:
    return {"math": teacher_path, "code": wide_path}


def loss_and_gradient(trainer, batch):
    loss = trainer._compute_loss(trainer.model, batch)
    return loss.detach(), torch.autograd.grad(loss, trainer.model.lm_head.weight)[0]


def routed(names=NAMES):
    return tiny.questions(teacher=list(names))


@pytest.mark.parametrize("options", [{}, {"teacher_batch_size": 3}, {"teacher_offload": "cpu"}], ids=str)
def test_the_loss_is_that_of_each_rows_own_teacher(tmp_path, student_path, teachers, options):
    trainer = opd_trainer(
        tmp_path, student_path, None,
        dataset=routed(), teachers=teachers, per_device_train_batch_size=8, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    batch = fixed_batch(trainer)
    loss, gradient = loss_and_gradient(trainer, batch)
    parts = []
    for name, path in teachers.items():
        alone = opd_trainer(tmp_path, student_path, path, per_device_train_batch_size=8)
        own = torch.tensor([other == name for other in NAMES])
        one = {k: v for k, v in batch.items() if not k.startswith("teacher_")}
        one["loss_mask"] = batch["loss_mask"] * own[:, None]
        alone.model.train()
        alone.current_gradient_accumulation_steps = 1
        parts.append(loss_and_gradient(alone, one))
        figure = trainer._metrics["train"][f"distillation/per_token_divergence/{name}"][-1]
        assert figure == pytest.approx(alone._metrics["train"]["distillation/per_token_divergence"][-1], rel=1e-4)
    torch.testing.assert_close(loss, parts[0][0] + parts[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, parts[0][1] + parts[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("names", [["math"] * 8, ["code"] * 8])
@pytest.mark.parametrize("rows_ahead", [None, 4])
def test_a_batch_without_a_row_of_one_teacher_logs_the_other_alone(
    tmp_path, student_path, teachers, names, rows_ahead
):
    trainer = opd_trainer(
        tmp_path, student_path, None, dataset=routed(names), teachers=teachers, teacher_batch_size=rows_ahead
    )
    trainer.train()
    logged = [key for row in trainer.state.log_history for key in row if "per_token_divergence/" in key]
    assert logged == [f"distillation/per_token_divergence/{names[0]}"]


def test_models_can_be_given_by_name_in_python(tmp_path, student_path, teacher_path):
    teachers = {"math": teacher_path, "code": tiny.build_model(seed=3)}
    trainer = opd_trainer(tmp_path, student_path, teachers, dataset=routed())
    trainer.train()
    assert list(trainer.teachers) == ["math", "code"]


def test_an_evaluation_set_is_routed_and_logged_too(tmp_path, student_path, teachers):
    trainer = opd_trainer(
        tmp_path, student_path, None,
        dataset=routed(), teachers=teachers, trainer_options={"eval_dataset": routed(["code"] * 8)},
    )  # fmt: skip
    figures = trainer.evaluate()
    assert "eval_distillation/per_token_divergence/code" in figures
    assert "eval_distillation/per_token_divergence/math" not in figures


@pytest.mark.parametrize("where", ["train", "eval"])
def test_a_row_that_names_no_teacher_is_an_error_before_anything_is_written(tmp_path, student_path, teachers, where):
    bad = [*NAMES[:5], "maths", *NAMES[6:]]
    train, evaluation = (routed(bad), None) if where == "train" else (routed(), routed(bad))
    message = f"row 5 of the {where} set names the teacher 'maths', and there are 'math', 'code'"
    with pytest.raises(ValueError, match=message):
        opd_trainer(
            tmp_path, student_path, None,
            dataset=train, teachers=teachers, trainer_options={"eval_dataset": evaluation},
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_the_column_is_an_error(tmp_path, student_path, teachers):
    with pytest.raises(ValueError, match="the train set has no column 'teacher', it has 'prompt'"):
        opd_trainer(tmp_path, student_path, None, teachers=teachers)


def test_a_stream_that_names_no_teacher_stops_at_its_row(tmp_path, student_path, teachers):
    stream = routed(["math", "nobody"] * 4).to_iterable_dataset()
    trainer = opd_trainer(tmp_path, student_path, None, dataset=stream, teachers=teachers)
    with pytest.raises(ValueError, match=r"row \d of this batch names the teacher 'nobody'"):
        trainer.train()


def test_a_column_named_teacher_means_nothing_to_a_single_teacher(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, dataset=routed(["x"] * 8))
    trainer.train()
    assert trainer.state.global_step == 1


def test_each_teachers_vocabulary_is_compared(tmp_path, student_path, teacher_path):
    other = tiny.save(tmp_path / "other", tokenizer=tiny.build_tokenizer(reverse=True))
    with pytest.raises(ValueError, match=r"teacher 'code': .*different vocabularies"):
        opd_trainer(tmp_path, student_path, None, dataset=routed(), teachers={"math": teacher_path, "code": other})


def test_the_mapping_can_be_json_as_on_the_command_line(tmp_path):
    args = OPDConfig(**settings(tmp_path, teachers='{"math": "a", "code": "http://b:1"}'))
    assert args.teachers == {"math": "a", "code": "http://b:1"}


def test_a_mapping_in_python_and_one_in_the_arguments_are_refused(tmp_path, student_path, teachers):
    with pytest.raises(ValueError, match="the arguments name teachers too"):
        opd_trainer(tmp_path, student_path, teachers, dataset=routed(), teachers=teachers)
