"""Arguments of the trainers that cannot mean what they say: refused before anything is written, with the remedy."""

import logging

import pytest
from datasets import DatasetDict
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from opd_trl import OPDConfig, OPDTrainer, OPSDTrainer
from opd_trl.trainers.rewards import check_reward_funcs
from tests import tiny
from tests.trainers.build import lora_config, opd_trainer, opsd_trainer, settings


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path):
    yield
    assert not (tmp_path / "out").exists()


def length(completions, **kwargs):
    return [float(len(str(completion))) for completion in completions]


@pytest.mark.parametrize(
    ("keyword", "near"),
    [("techer_model", "teacher_model"), ("train_datset", "train_dataset"), ("peft_conf", "peft_config")],
)
@pytest.mark.parametrize("trainer", [OPDTrainer, OPSDTrainer])
def test_a_misspelt_argument_names_the_nearest(student_path, trainer, keyword, near):
    with pytest.raises(
        TypeError, match=rf"{trainer.__name__} has no such argument. '{keyword}': did you mean {near}\?"
    ):
        trainer(student_path, **{keyword: "x"})


def test_a_data_set_of_several_splits_is_refused_with_the_line_to_write(tmp_path, student_path, teacher_path):
    for splits, said in (("train", "test"), "dataset\\['train'\\]"), (("a", "b"), "dataset\\['a'\\]"):
        dataset = DatasetDict({split: tiny.questions() for split in splits})
        with pytest.raises(TypeError, match=rf"is a DatasetDict of the splits '{splits[0]}', .*train_dataset={said}"):
            opd_trainer(tmp_path, student_path, teacher_path, dataset=dataset)
    with pytest.raises(TypeError, match="is a dict of the splits 'train'"):
        opsd_trainer(tmp_path, student_path, dataset={"train": tiny.questions(privileged_context="b")})


def test_a_teacher_in_second_place_is_refused(tmp_path, student_path, teacher_path):
    args = OPDConfig(**settings(tmp_path, teacher_model_name_or_path=teacher_path))
    model = AutoModelForCausalLM.from_pretrained(teacher_path)
    for teacher, said in (
        (model, "a Qwen3ForCausalLM"),
        (teacher_path, rf"'{teacher_path}' \(Qwen3ForCausalLM\)"),
        ("http://127.0.0.1:8001", "the address http://127.0.0.1:8001"),
    ):
        with pytest.raises(TypeError, match=rf"reward_funcs holds {said}, which writes text .* teacher_model=\.\.\."):
            OPDTrainer(student_path, teacher, args, tiny.questions())
    with pytest.raises(TypeError, match=r"reward_funcs holds OPDConfig\. Pass the configuration by name: args="):
        OPDTrainer(student_path, args, train_dataset=tiny.questions())


def test_a_reward_model_and_a_function_are_rewards(tmp_path, student_path):
    model = AutoModelForSequenceClassification.from_pretrained(student_path, num_labels=1)
    model.save_pretrained(tmp_path / "reward")
    args = OPDConfig(**settings(tmp_path, reward_weights=[1.0, 1.0, 1.0]))
    check_reward_funcs([length, model, str(tmp_path / "reward")], args, environment=False)


@pytest.mark.parametrize("none", [None, []])
def test_weights_of_rewards_that_are_not_there_are_refused(tmp_path, student_path, teacher_path, none):
    with pytest.raises(ValueError, match=r"reward_weights=\[0.5, 0.5\] without rewards.*Give reward_funcs"):
        opd_trainer(
            tmp_path, student_path, teacher_path, reward_weights=[0.5, 0.5], trainer_options={"reward_funcs": none}
        )


@pytest.mark.parametrize(
    "options", [{"teacher_model_init_kwargs": {"dtype": "bfloat16"}}, {"teacher_model_revision": "main"}]
)
def test_options_of_loading_where_no_teacher_is_loaded_are_refused(tmp_path, student_path, teacher_path, options):
    model = AutoModelForCausalLM.from_pretrained(teacher_path)
    (name,) = options
    with pytest.raises(ValueError, match=rf"{name}=.* has no effect: no teacher is loaded here.*Remove {name}"):
        opd_trainer(tmp_path, student_path, model, **options)
    with pytest.raises(ValueError, match=rf"{name}=.* has no effect"):
        opd_trainer(tmp_path, student_path, {"a": model}, dataset=tiny.questions(teacher="a"), **options)
    with pytest.raises(ValueError, match=rf"{name}=.* has no effect"):
        opd_trainer(tmp_path, student_path, "http://127.0.0.1:9", **options)


@pytest.mark.parametrize("named", [{"teacher_server_url": "http://127.0.0.1:9"}, {"teachers": {"a": "b"}}])
def test_a_teacher_beside_another_that_the_arguments_name_is_refused(tmp_path, student_path, teacher_path, named):
    with pytest.raises(ValueError, match="teacher_model is given, and the arguments name another teacher too"):
        opd_trainer(tmp_path, student_path, teacher_path, **named)
    with pytest.raises(ValueError, match="teacher_model is given, and the arguments name another teacher too"):
        opd_trainer(tmp_path, student_path, teacher_path, teacher_model_name_or_path=student_path)


def test_the_same_teacher_may_be_named_twice(tmp_path, student_path, teacher_path):
    model = AutoModelForCausalLM.from_pretrained(teacher_path)
    for teacher in (teacher_path, model):
        trainer = opd_trainer(tmp_path / "built", student_path, teacher, teacher_model_name_or_path=teacher_path)
        assert trainer.teacher_model is trainer.teacher.model
    assert trainer.max_prompt_length is None


class OfAUser(OPDTrainer):
    """A trainer with fewer arguments than its parent takes."""

    def __init__(self, model, teacher, args):
        super().__init__(
            model, args=args, teacher_model=teacher, train_dataset=tiny.questions(), peft_config=lora_config()
        )


def test_a_users_trainer_may_take_fewer_arguments(tmp_path, student_path, teacher_path):
    args = OPDConfig(**settings(tmp_path / "built"))
    assert hasattr(OfAUser(student_path, teacher_path, args).model, "peft_config")


def test_a_student_that_teaches_itself_is_the_teacher_model(tmp_path, student_path):
    trainer = opsd_trainer(tmp_path / "built", student_path)
    assert trainer.teacher_model is trainer.model


@pytest.mark.parametrize(("beta", "rewards", "warns"), [(0.1, None, True), (0.04, None, False), (1.0, length, False)])
def test_a_large_beta_without_rewards_warns(tmp_path, student_path, teacher_path, caplog, beta, rewards, warns):
    options = {"beta": beta, "trainer_options": {"reward_funcs": rewards}}
    with caplog.at_level(logging.WARNING):
        opd_trainer(tmp_path / "built", student_path, teacher_path, **options)
    assert (f"beta={beta} without rewards" in caplog.text) == warns
