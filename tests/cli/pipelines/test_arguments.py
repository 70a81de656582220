"""Arguments become flags that the command's own parser has read."""

import argparse
import os
from pathlib import Path

import pytest

from opd_trl.cli.pipelines.arguments import command_line, flags, flags_of_script
from opd_trl.scripts.recipe_files import pipeline_names


def line(run: str, args: dict, config: dict | None = None, *, without_gpu: bool = True) -> list[str]:
    return command_line(run=run, config=config or {}, origin="r.yaml", args=args, without_gpu=without_gpu)


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--think", action=argparse.BooleanOptionalAction)
    parser.add_argument("--seeds")
    parser.add_argument("--rules", nargs="+")
    parser.add_argument("--with", action="append")
    return parser


def test_values_take_the_form_that_the_parser_wants(parser):
    args = {
        "max_length": -3,
        "overwrite": True,
        "think": False,
        "seeds": [0, 1],
        "rules": ["a", "b"],
        "with": ["c", "d"],
        "file": "f.jsonl",
    }
    assert flags(args, parser, {}, "args") == [
        *("f.jsonl", "--max-length=-3", "--overwrite", "--no-think", "--seeds", "0,1", "--rules", "a", "b"),
        *("--with", "c", "--with", "d"),
    ]
    assert flags({"overwrite": False}, parser, {}, "args") == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"seedz": 1}, "unknown argument in args. seedz: did you mean seeds?"),
        ({"overwrite": "no"}, "--overwrite is a switch: give true or false"),
        ({"seeds": None}, "seeds in args has no value"),
    ],
)
def test_what_a_parser_does_not_take_is_refused(args, message, parser):
    with pytest.raises(ValueError, match=message.replace(".", r"\.").replace("?", r"\?")):
        flags(args, parser, {}, "args")


def test_the_arguments_of_a_script_pass_as_they_are():
    assert flags_of_script({"a": True, "b": False, "c": [1, 2], "d": {"e": 1}, "f": -1}) == [
        *("--a", "--c", "1", "2", "--d", '{"e": 1}', "--f=-1")
    ]


def test_trl_reads_back_the_lists_and_mappings_of_a_stage(here):
    from trl.scripts.grpo import make_parser

    args = {
        "output_dir": "out",
        "model_name_or_path": "a/b",
        "reward_funcs": ["opd_trl.evaluation.math_accuracy", "think_format_reward"],
        "chat_template_kwargs": {"enable_thinking": False},
        "lora_target_modules": ["q_proj", "v_proj"],
        "bf16": False,
        "save_strategy": "no",
        "num_processes": 2,
    }
    told = line("trl grpo", args)
    script, training, model, _, rest = make_parser().parse_args_and_config(
        [*told, "--use_cpu"], return_remaining_strings=True
    )
    assert script.reward_funcs == args["reward_funcs"]
    assert training.chat_template_kwargs == {"enable_thinking": False}
    assert (training.bf16, training.save_strategy) == (False, "no")
    assert model.lora_target_modules == ["q_proj", "v_proj"]
    assert rest == ["--num_processes", "2"]


@pytest.mark.parametrize(
    ("run", "args", "config", "message"),
    [
        ("trl sft", {"output_dir": "o", "learning_ratte": 1}, {}, "args. learning_ratte: did you mean learning_rate?"),
        (
            "trl sft",
            {"output_dir": "o"},
            {"max_stepz": 1},
            "unknown key in r.yaml. max_stepz: did you mean max_steps?",
        ),
        ("trl sft", {"output_dir": "o", "max_steps": "many"}, {}, "invalid int value: 'many'"),
        ("trl sft", {"output_dir": "o", "save_strategy": "daily"}, {}, "daily"),
        ("trl grpo", {"output_dir": "o", "num_generations": 1}, {}, "at least 2 generations"),
        ("trl grpo", {"output_dir": "o", "reward_funcs": ["math_accuracy"]}, {}, "opd_trl.evaluation.math_accuracy"),
        ("trl grpo", {"output_dir": "o"}, {"reward_funcs": ["no_such.function"]}, "no_such.function"),
        ("opd-trl opd", {"output_dir": "o", "loss_top_k": 0}, {}, "loss_top_k must be >= 1, got 0"),
        ("opd-trl opd", {"output_dir": "o", "loss_topk": 3}, {}, "loss_topk: did you mean loss_top_k?"),
        ("opd-trl opsd", {"output_dir": "o"}, {"loss_suport": "full"}, "loss_suport: did you mean loss_support?"),
        ("opd-trl opd", {"output_dir": "o", "accelerate_config": "zero9"}, {}, "Nearest: zero"),
        ("opd-trl opd", {"output_dir": "o"}, {"eval_strategy": False}, "r.yaml: eval_strategy: False is not a choice"),
        ("opd-trl toy", {"outputt": "o"}, {}, "outputt: did you mean output?"),
        ("opd-trl data filter", {"output": "o"}, {}, "required: FILE"),
        ("opd-trl data filtre", {"output": "o"}, {}, "`opd-trl data` has no `filtre`. It has list, prepare"),
        ("opd-trl toy", {"seed": "x"}, {}, "invalid int value: 'x'"),
    ],
)
def test_every_stage_is_checked_by_its_own_parser(run, args, config, message, here):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        line(run, args, config)
    assert message in str(error.value)


def test_a_recipe_of_a_stage_reaches_its_parser(here):
    assert line("opd-trl opd", {"output_dir": "o"}, {"loss_top_k": 5, "num_processes": 2}) == ["--output_dir", "o"]
    with pytest.raises(ValueError, match="loss_top_k must be >= 1, got 0"):
        line("opd-trl opd", {"output_dir": "o"}, {"loss_top_k": 0})


def test_a_field_of_a_recipe_wins_over_its_method_as_in_the_stage_itself(here):
    recipe = {"method": "sdpo", "divergence": "jsd", "loss_top_k": 0}
    with pytest.raises(ValueError, match="loss_top_k must be >= 1, got 0"):
        line("opd-trl opd", {"output_dir": "o"}, recipe)


def test_a_wrong_argument_of_a_later_stage_stops_the_first(write_pipeline, run, here):
    write_pipeline()
    Path("p.yaml").write_text(Path("p.yaml").read_text() + "  four: {run: trl sft, args: {max_stepz: 3}}\n")
    status, text = run()
    assert status == 2
    assert "stage four: unknown argument in args. max_stepz: did you mean max_steps?" in text
    assert not Path("run").exists()


@pytest.mark.parametrize("name", pipeline_names())
def test_every_pipeline_that_comes_with_the_package_is_checked_in_full(name, here, capfd):
    from opd_trl.cli.main import main

    assert main(["pipeline", "--config", name, "--dry-run"]) == 0
    assert "has not run" in capfd.readouterr().out
    assert [path.name for path in here.iterdir()] == ["work.py"]


def test_the_check_leaves_the_environment_alone_and_takes_the_key_of_it(here):
    line("opd-trl opd", {"output_dir": "o"}, {"env": {"OPD_TRL_PIPELINE_TEST": "x"}})
    line("trl sft", {"output_dir": "o"}, {"env": {"OPD_TRL_PIPELINE_TEST": "x"}})
    assert "OPD_TRL_PIPELINE_TEST" not in os.environ
