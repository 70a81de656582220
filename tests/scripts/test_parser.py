import os
from pathlib import Path

import pytest
import yaml

from opd_trl.scripts.launching import suggest


def write(path: Path, **content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_recipe_sets_fields_and_a_flag_overrides_it(parse, here):
    write(here / "r.yaml", divergence="mixed", loss_top_k=7, learning_rate="3e-4", lora_r=4)
    _, training, model, _, from_recipe, from_line = parse("--config", "r.yaml", "--loss_top_k", "9")
    assert (training.divergence, training.loss_top_k, training.learning_rate) == ("mixed", 9, 3e-4)
    assert model.lora_r == 4
    assert from_recipe == from_line == []


@pytest.mark.parametrize(
    ("form", "folder"),
    [
        (["--config", "r.yaml"], "."),
        (["--config=r.yaml"], "."),
        (["--config", "r.yaml"], "recipes"),
        (["--config", "r"], "recipes"),
        (["--config=r"], "recipes"),
    ],
)
def test_config_takes_a_path_or_a_name_in_both_forms(form, folder, parse, here, monkeypatch):
    monkeypatch.setattr("opd_trl.scripts.recipe_files.recipes_dir", lambda: here / "recipes")
    write(here / folder / "r.yaml", loss_top_k=6)
    assert parse(*form)[1].loss_top_k == 6


def test_an_unknown_key_of_a_recipe_names_the_nearest_one(refused, here):
    write(here / "r.yaml", betta=0.5, loss_top_kk=3)
    error = refused("--config", "r.yaml")
    assert "unknown key in r.yaml" in error
    assert "betta: did you mean beta?" in error
    assert "loss_top_kk: did you mean loss_top_k?" in error
    assert list(here.iterdir()) == [here / "r.yaml"]


def test_an_unknown_flag_names_the_nearest_one(refused, here):
    assert "--betta: did you mean --beta?" in refused("--betta", "0.5")
    assert "--loss_suport: did you mean --loss_support?" in refused("--loss_suport=full")
    assert "--num_processs: did you mean --num_processes?" in refused("--num_processs", "2")
    assert list(here.iterdir()) == []


def test_an_abbreviated_flag_is_unknown(refused):
    assert "--loss_top: did you mean --loss_top_k?" in refused("--loss_top", "5")


def test_a_value_that_follows_no_flag_is_refused(refused):
    assert "unknown argument. stray" in refused("stray")
    assert "unknown argument. stray" in refused("--num_processes", "2", "stray")


def test_keys_of_accelerate_are_allowed_in_a_recipe_and_on_the_line(parse, here):
    write(here / "r.yaml", num_processes=4, accelerate_config="zero2", multi_gpu=True, quiet=False)
    *_, from_recipe, from_line = parse("--config", "r.yaml", "--num-machines=2", "--main_process_port", "0")
    assert sorted(from_recipe) == sorted(["--num_processes", "4", "--accelerate_config", "zero2", "--multi_gpu"])
    assert from_line == ["--num-machines=2", "--main_process_port", "0"]


def test_a_script_under_accelerate_launch_accepts_a_recipe_with_keys_of_accelerate(make_parser, here):
    write(here / "r.yaml", num_processes=4, loss_top_k=6, use_cpu=True)
    _, training, _, _ = make_parser().parse_args_and_config(["--config", "r.yaml"])
    assert training.loss_top_k == 6


def test_a_script_refuses_flags_of_accelerate(make_parser, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args_and_config(["--use_cpu", "--num_processes", "2"])
    assert "--num_processes belongs to `accelerate launch`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"loss_top_k": "many"}, "invalid int value: 'many'"),
        ({"loss_top_k": 2.5}, "invalid int value: '2.5'"),
        ({"dtype": "bfloat17"}, "invalid choice: 'bfloat17'"),
        ({"stop_gradient": 3}, "Truthy value expected"),
        ({"eval_strategy": False}, "quote it"),
        ({"loss_top_k": 0}, "loss_top_k must be >= 1, got 0"),
        ({"loss_support": "studnet"}, "loss_support must be one of"),
        ({"datasets": [{"path": "a/b", "splitt": "train"}]}, "splitt: did you mean split?"),
        ({"datasets": [{"name": "b"}]}, "path"),
        ({"env": "A=1"}, "env"),
    ],
)
def test_a_wrong_value_in_a_recipe_is_one_line(content, message, refused, here):
    write(here / "r.yaml", **content)
    assert message in refused("--config", "r.yaml")


@pytest.mark.parametrize("text", ["a: [1", "", "- 1\n- 2\n", "1: 2\n"])
def test_a_file_that_is_no_mapping_of_fields_is_one_line(text, make_parser, capsys, here):
    (here / "r.yaml").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        make_parser().parse_args_and_config(["--config", "r.yaml"])
    assert exit_.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_config_without_a_name_or_given_twice_is_refused(refused):
    assert "--config needs a recipe's name or path" in refused("--config", "--beta", "0")


def test_a_recipe_that_does_not_exist_lists_the_nearest(refused):
    error = refused("--config", "math/opd_qwen3_1.7b_from_8")
    assert "is neither a file" in error
    assert "math/opd_qwen3_1.7b_from_8b" in error


def test_environment_variables_of_a_recipe_are_set(parse, here, monkeypatch):
    monkeypatch.setenv("OPD_TRL_TEST", "before")
    write(here / "r.yaml", env={"OPD_TRL_TEST": "after"})
    parse("--config", "r.yaml")
    assert os.environ["OPD_TRL_TEST"] == "after"


def test_files_of_a_recipe_are_found_here_first_then_beside_it(parse, here):
    recipe = write(
        here / "elsewhere" / "r.yaml",
        dataset_name="rows.jsonl",
        privileged_context_file="context.md",
        accelerate_config="launch.yaml",
    )
    for name, text in {"rows.jsonl": "x", "context.md": "x", "launch.yaml": "num_processes: 1"}.items():
        (recipe.parent / name).write_text(text)
    (here / "rows.jsonl").write_text("x")
    script, training, *_, from_recipe, _ = parse("--config", str(recipe))
    assert script.dataset_name == "rows.jsonl"
    assert Path(training.privileged_context_file) == recipe.parent / "context.md"
    assert from_recipe == ["--accelerate_config", str(recipe.parent / "launch.yaml")]


def test_a_file_given_on_the_command_line_is_not_looked_for_beside_the_recipe(parse, here):
    recipe = write(here / "elsewhere" / "r.yaml", loss_top_k=4)
    (recipe.parent / "rows.jsonl").write_text("x")
    assert parse("--config", str(recipe), "--dataset_name", "rows.jsonl")[0].dataset_name == "rows.jsonl"


def test_a_mapping_in_a_recipe_reaches_its_field(parse, here):
    write(here / "r.yaml", chat_template_kwargs={"enable_thinking": False}, lora_target_modules=["q_proj", "v_proj"])
    _, training, model, *_ = parse("--config", "r.yaml")
    assert training.chat_template_kwargs == {"enable_thinking": False}
    assert model.lora_target_modules == ["q_proj", "v_proj"]


def test_a_hopeless_name_points_to_the_help():
    assert "--help-all" in suggest("--zzzzzz", ["beta"])


@pytest.mark.parametrize("flags", [["--num_processes", "8"], ["--accelerate_config", "zero2"]])
def test_a_group_that_only_all_processes_together_hold_is_allowed(parse, flags):
    batch = ["--num_generations", "8", "--per_device_train_batch_size", "2", "--output_dir", "out"]
    _, training, *_ = parse(*batch, *flags, name="opd")
    assert training.generation_batch_size == 16


def test_a_group_that_does_not_fit_all_processes_is_refused(refused):
    batch = ["--num_generations", "8", "--per_device_train_batch_size", "2", "--output_dir", "out"]
    assert "generation_batch_size (6) must be divisible" in refused(*batch, "--num_processes", "3", name="opd")


def test_several_teachers_are_a_mapping_in_a_recipe(parse, here):
    (here / "r.yaml").write_text("teachers:\n  math: Qwen/Qwen3-8B\n  code: http://127.0.0.1:8001\noutput_dir: out\n")
    _, training, *_ = parse("--config", "r.yaml", name="opd")
    assert training.teachers == {"math": "Qwen/Qwen3-8B", "code": "http://127.0.0.1:8001"}


def test_an_accelerate_configuration_that_is_none_is_refused(refused, here):
    (here / "launch.yaml").write_text("zero2")
    error = refused("--accelerate_config", "launch.yaml", "--output_dir", "out")
    assert "launch.yaml must contain a YAML mapping" in error


def test_of_several_recipes_later_ones_win_and_flags_win_over_all(parse, here):
    write(here / "a.yaml", loss_top_k=7, divergence="mixed", learning_rate="3e-4")
    write(here / "b.yaml", loss_top_k=8, learning_rate="4e-4")
    training = parse("--config", "a.yaml", "--config=b.yaml", "--learning_rate", "5e-4")[1]
    assert (training.loss_top_k, training.divergence, training.learning_rate) == (8, "mixed", 5e-4)
