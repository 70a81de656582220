"""What was set by hand wins over a method's presets; unknown fields and values that do not fit are refused."""

import dataclasses
import inspect
import math
import typing
from pathlib import Path

import pytest
from transformers import HfArgumentParser
from trl import GRPOConfig, GRPOTrainer, ModelConfig, ScriptArguments, TrlParser

from opd_trl import OPDConfig, OPDTrainer, OPSDConfig, OPSDTrainer
from opd_trl.given import MAY_BE_INFINITE
from opd_trl.trainers.config.published_methods import FIELDS, METHODS


HERE = ["--output_dir", "out", "--use_cpu", "--bf16", "false"]
#: Class, method, field, its default as a flag, and as a value: the method sets another one.
AT_THEIR_DEFAULT = [
    (OPSDConfig, "sdpo", "divergence", "reverse_kl", "reverse_kl"),
    (OPSDConfig, "sdpo", "loss_top_k", "20", 20),
    (OPSDConfig, "sdpo", "teacher_model_kind", "base", "base"),
    (OPSDConfig, "sdft", "loss_importance_cap", "none", None),
    (OPSDConfig, "opsd", "temperature", "1.0", 1.0),
    (OPDConfig, "many_faces", "warmup_steps", "0", 0),
    (OPDConfig, "vopd", "lr_scheduler_type", "linear", "linear"),
    (OPDConfig, "rethinking", "learning_rate", "2e-6", 2e-6),
]


@pytest.mark.parametrize("parser", [TrlParser, HfArgumentParser])
@pytest.mark.parametrize(("config_class", "method", "field", "flag", "value"), AT_THEIR_DEFAULT)
def test_a_flag_at_its_default_wins_over_the_method(parser, config_class, method, field, flag, value):
    if parser is HfArgumentParser and value is None:
        pytest.skip("transformers' parser has no word for None")
    (config,) = parser(config_class).parse_args_into_dataclasses([*HERE, "--method", method, f"--{field}", flag])
    assert getattr(config, field) == value
    assert field in config._given
    for name, published in METHODS[method].fields.items():
        if name != field and hasattr(config, name):
            assert getattr(config, name) == published


@pytest.mark.parametrize(("config_class", "method", "field", "flag", "value"), AT_THEIR_DEFAULT)
def test_in_python_and_in_yaml_it_wins_too(tmp_path, config_class, method, field, flag, value):
    config = config_class(output_dir="out", use_cpu=True, bf16=False, method=method, **{field: value})
    assert getattr(config, field) == value
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: {method}\n{field}: {'null' if value is None else flag}\n")
    (config,) = TrlParser(config_class).parse_args_and_config([*HERE, "--config", str(recipe)])
    assert getattr(config, field) == value


@pytest.mark.parametrize("method", METHODS)
def test_what_nobody_named_is_the_methods(method):
    config_class = OPSDConfig if METHODS[method].teacher == "self" else OPDConfig
    (config,) = TrlParser(config_class).parse_args_into_dataclasses([*HERE, "--method", method])
    for name, published in METHODS[method].fields.items():
        if hasattr(config, name):
            assert getattr(config, name) == published
    assert not FIELDS & config._given


def test_switches_that_are_on_by_default_are_on_in_every_method():
    # A parser cannot tell whether somebody named them, so no method may switch them off.
    on = {field.name for field in dataclasses.fields(OPSDConfig) if field.default is True}
    assert [
        name for method in METHODS.values() for name, value in method.fields.items() if name in on and not value
    ] == []


@dataclasses.dataclass
class OfAScript(OPSDConfig):
    """As TRL's SDPO script extends its configuration, with a look at a field of ours before ours is run."""

    scale_rewards: str = dataclasses.field(default="group")

    def __post_init__(self):
        self.before = self.loss_top_k + 1
        super().__post_init__()


def test_a_configuration_that_a_script_extends_sees_plain_values():
    assert OfAScript(output_dir="out", use_cpu=True, bf16=False).before == 21
    (config,) = TrlParser(OfAScript).parse_args_into_dataclasses([*HERE, "--method", "sdpo", "--loss_top_k", "20"])
    assert (config.before, config.loss_top_k, config.loss_tail) == (21, 20, "bucket")


@dataclasses.dataclass
class WithItsOwnColumn(ScriptArguments):
    """As in TRL's SDFT script, whose flag is also one of ours."""

    privileged_context_column: str = dataclasses.field(default="privileged_context")


@pytest.mark.parametrize("parser", [TrlParser, HfArgumentParser])
def test_a_scripts_own_privileged_context_column_is_the_scripts(parser):
    flags = [*HERE, "--privileged_context_column", "hint"]
    script, config, _ = parser((WithItsOwnColumn, OPSDConfig, ModelConfig)).parse_args_into_dataclasses(flags)
    assert (script.privileged_context_column, config.privileged_context_column) == ("hint", "privileged_context")
    _, config, _ = parser((ScriptArguments, OPSDConfig, ModelConfig)).parse_args_into_dataclasses(flags)
    assert config.privileged_context_column == "hint"
    assert config.to_dict()["privileged_context_column"] == "hint"


@pytest.mark.parametrize(
    ("field", "near"),
    [("loss_topk", "loss_top_k"), ("learning_ratte", "learning_rate"), ("techer_model_kind", "teacher_model_kind")],
)
def test_an_unknown_field_names_the_nearest(field, near):
    with pytest.raises(TypeError, match=f"OPSDConfig has no such argument. '{field}': did you mean {near}\\?"):
        OPSDConfig(output_dir="out", **{field: 1})


def test_an_unknown_field_that_is_like_none_says_where_all_stand():
    with pytest.raises(TypeError, match=r"'zzz': nothing is spelt like it; see help\(OPDConfig\)"):
        OPDConfig(output_dir="out", zzz=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_top_k": "20"}, "loss_top_k must be a whole number, got '20' (str). Write it without quotes."),
        ({"loss_top_k": 2.5}, "loss_top_k must be a whole number, got 2.5 (float)."),
        ({"num_loss_tokens_to_skip": True}, "num_loss_tokens_to_skip must be a whole number, got True (bool)."),
        ({"divergence_beta": "0.3"}, "divergence_beta must be a number, got '0.3' (str). Write it without quotes."),
        ({"learning_rate": "1e-5"}, "learning_rate must be a number, got '1e-5' (str). Write it without quotes."),
        ({"stop_gradient": "false"}, "stop_gradient must be true or false, got 'false' (str). Write it without"),
        ({"mask_truncated_completions": "no"}, "mask_truncated_completions must be true or false, got 'no' (str)."),
        ({"loss_skip_first": "<t>"}, "loss_skip_first must be a list of texts, got '<t>' (str). Write ['<t>']."),
        ({"privileged_context": ["a"]}, "privileged_context must be text, got ['a'] (list)."),
        ({"max_completion_length": [8]}, "max_completion_length must be a whole number, got [8] (list)."),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused_in_words(options, said):
    with pytest.raises(TypeError) as refused:
        OPDConfig(output_dir="out", **options)
    assert str(refused.value).startswith(said)


def test_a_path_and_a_whole_float_are_taken_as_what_they_are():
    config = OPDConfig(output_dir=Path("out"), use_cpu=True, teacher_model_name_or_path=Path("a/b"), max_steps=5.0)
    assert (config.teacher_model_name_or_path, config.max_steps) == ("a/b", 5)
    assert type(config.max_steps) is int


@pytest.mark.parametrize(
    ("options", "near"),
    [
        ({"divergence": "revers_kl"}, "reverse_kl"),
        ({"loss_support": "Student"}, "student"),
        ({"loss_tail": "renormalise"}, "renormalize"),
        ({"distillation_gate": "corect"}, "correct"),
        ({"teacher_model_kind": "emma"}, "ema"),
    ],
)
def test_a_wrong_choice_names_the_nearest(options, near):
    with pytest.raises(ValueError, match=rf"must be one of .* Did you mean {near}\?"):
        OPSDConfig(output_dir="out", use_cpu=True, **options)


@pytest.mark.parametrize("config_class", [OPDConfig, OPSDConfig, OfAScript])
def test_the_signature_of_a_configuration_lists_its_fields(config_class):
    found = inspect.signature(config_class).parameters
    assert set(found) == {field.name for field in dataclasses.fields(config_class) if field.init}
    assert (found["loss_top_k"].annotation, found["loss_top_k"].default) == (int, 20)
    assert type(found["loss_top_k"].default) is int
    assert set(inspect.signature(GRPOConfig).parameters) <= set(found)


@pytest.mark.parametrize("trainer", [OPDTrainer, OPSDTrainer])
def test_the_signature_of_a_trainer_lists_its_arguments_and_those_of_grpo(trainer):
    found = inspect.signature(trainer).parameters
    assert list(found)[:3] == ["model", "reward_funcs", "args"]
    assert set(inspect.signature(GRPOTrainer).parameters) | {"teacher_model"} <= set(found)
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in found.values())


class OfAUser(OPDTrainer):
    """A trainer with an argument of its own."""

    def __init__(self, *args, note: str = "", **kwargs):
        self.note = note
        super().__init__(*args, **kwargs)


def test_the_signature_of_a_users_trainer_has_its_own_argument_too():
    assert {"note", "teacher_model", "peft_config"} <= set(inspect.signature(OfAUser).parameters)


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({"divergence_beta": 0.9}, "divergence: jsd or mixed"),
        ({"divergence": "jsd", "loss_support": "sampled"}, "a loss_support other than sampled"),
        ({"loss_top_k": 5, "loss_support": "full"}, "a loss_support of TopK, or loss_baseline: top_k"),
        ({"loss_tail": "bucket", "loss_support": "full"}, "a loss_support of TopK"),
        ({"distillation_coef_end": 0.5}, "distillation_coef_schedule: linear"),
        ({"distillation_gate_threshold": 0.9}, "distillation_gate or sibling_context"),
        ({"teacher_update_rate": 0.5}, "teacher_model_kind: ema"),
    ],
)
def test_a_field_set_by_hand_that_nothing_reads_is_named(caplog, options, needs):
    OPSDConfig(output_dir="out", use_cpu=True, **options)
    (name, value), *_ = options.items()
    assert f"{name}={value!r} has no effect here. It needs {needs}." in caplog.text


def test_a_field_that_is_read_or_that_a_method_sets_is_not(caplog):
    OPSDConfig(output_dir="out", use_cpu=True, divergence="mixed", divergence_beta=0.9, loss_top_k=5)
    OPSDConfig(output_dir="out", use_cpu=True, method="sdpo", teacher_update_rate=0.2)
    OPDConfig(output_dir="out", use_cpu=True, method="vopd", loss_baseline="top_k", loss_top_k=100)
    OPDConfig(output_dir="out", use_cpu=True, method="exopd")
    assert "has no effect" not in caplog.text


def floats_of(config_class):
    hints = typing.get_type_hints(config_class)
    return [f.name for f in dataclasses.fields(config_class) if f.init and "float" in str(hints[f.name])]


@pytest.mark.attack("recipes", "NaN or infinity in any field, of TRL's too", "refused, the field named")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_in_every_field(value, here):
    names = floats_of(OPSDConfig)
    assert {"distillation_coef", "learning_rate", "max_grad_norm", "reward_weights"} <= set(names)
    for name in names:
        if value == math.inf and name in MAY_BE_INFINITE:
            continue
        given = [value] if name == "reward_weights" else value
        with pytest.raises(ValueError, match=rf"^{name}\b.* must be a finite number"):
            OPSDConfig(output_dir="out", **{name: given})
    with pytest.raises(ValueError, match=r"^model_init_kwargs.dropout must be a finite number"):
        OPSDConfig(output_dir="out", model_init_kwargs={"dropout": value})


def test_an_infinite_limit_is_no_limit(here):
    OPSDConfig(output_dir="out", use_cpu=True, bf16=False, **dict.fromkeys(("max_grad_norm", "delta"), math.inf))


@pytest.mark.parametrize(
    "argv",
    [
        ("--lora_dropout", "nan"),
        ("--learning_rate", "inf"),
        ("--model_init_kwargs", '{"dropout": NaN}'),
        ("--test_split_size", "nan"),
    ],
)
def test_flags_take_finite_numbers_alone(argv, refused):
    assert "must be a finite number" in refused(*argv)
