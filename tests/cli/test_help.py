import dataclasses
import re
import shlex

import pytest
from trl import GRPOConfig

from opd_trl import OPDConfig, OPSDConfig
from opd_trl.cli.main import main
from opd_trl.cli.training import ABOUT, NOT_IN_OPSD, START, TRL_FLAGS, our_flags, read_fields, short_help
from opd_trl.scripts.launching import launch_arity


CONFIGS = {"opd": OPDConfig, "opsd": OPSDConfig}


def own_fields(config: type) -> set[str]:
    ours = (cls for cls in config.__mro__ if cls.__module__.startswith("opd_trl."))
    declared = {name for cls in ours for name in cls.__annotations__}
    return declared & {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_of_ours_is_in_the_short_help_with_its_default(name):
    config = CONFIGS[name]
    shown = {flag.name: flag for flag in our_flags(name)}
    hidden = set(NOT_IN_OPSD) if name == "opsd" else set()
    assert set(shown) == own_fields(config) - hidden
    fields = {field.name: field for field in dataclasses.fields(config)}
    for flag in shown.values():
        assert flag.default == str(fields[flag.name].default)
        assert flag.help == fields[flag.name].metadata["help"]
        assert f"  --{flag.name} " in short_help(name)


def test_fields_are_grouped_by_the_comments_of_the_source():
    source = (
        "@dataclass\nclass C:\n"
        "    # One\n    a: int = field(default=1, metadata={'help': 'A ' 'b.'})\n"
        "    b: str = field(default='x', metadata={'help': 'B.'})\n\n"
        "    # Two\n    c: int | None = field(default=None, metadata={'help': 'C.'})\n    d: int = 3\n"
    )
    flags = read_fields(source, "C")
    assert [(f.name, f.default, f.help, f.group) for f in flags] == [
        ("a", "1", "A b.", "One"),
        ("b", "x", "B.", "One"),
        ("c", "None", "C.", "Two"),
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_flags_of_trl_in_the_short_help_exist(name, make_parser):
    known = {action.dest for action in make_parser(name)._actions} | launch_arity().keys() | {"config"}
    named = [flag for group in (START, *TRL_FLAGS.values()) for flag, _ in group]
    named += ["vllm_mode", "num_train_epochs", "warmup_steps", "lora_r", "lora_alpha", "lora_target_modules"]
    assert set(named) <= known
    assert "warmup_steps" in {field.name for field in dataclasses.fields(GRPOConfig)}


@pytest.mark.parametrize(("name", "flags"), [(n, flags) for n in ABOUT for _, flags in ABOUT[n][1]])
def test_the_examples_of_the_short_help_parse(name, flags, parse, here):
    (here / "my_recipe.yaml").write_text("model_name_or_path: x\n")
    _, _, model, *_ = parse(*shlex.split(flags), name=name)
    assert model.model_name_or_path


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("width", [60, 100])
def test_the_short_help_fits_its_width_and_points_to_the_long_one(name, width):
    text = short_help(name, width)
    assert f"opd-trl {name} --help-all" in text
    long_lines = [line for line in text.splitlines() if len(line) > width and not re.search(r"`|usage|opd-trl", line)]
    assert long_lines == []


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["--config", "x", "--help"]])
def test_help_and_a_bare_command_print_the_short_help(argv, capsys):
    assert main(["opsd", *argv]) == 0
    assert capsys.readouterr().out == short_help("opsd") + "\n"


def test_help_all_prints_the_flags_of_trl_and_transformers(capsys):
    assert main(["opd", "--help-all"]) == 0
    printed = capsys.readouterr().out
    for flag in ("--loss_support", "--vllm_group_port", "--adam_beta2", "--lora_r", "--dataset_name"):
        assert flag in printed
