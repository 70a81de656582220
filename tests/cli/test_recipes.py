import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import opd_trl
from opd_trl.cli.main import main
from opd_trl.cli.recipes import accelerate_names, copy_recipe, find_recipe, recipe_names, recipes_dir, side_files


COMMAND = re.compile(r"opd-trl (opd|opsd) --config (\S+)(.*)")
NAMES = recipe_names()


def header(recipe: Path) -> str:
    lines = recipe.read_text().splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_parses_strictly_with_the_command_of_its_header(name, parse):
    command, config, flags = COMMAND.search(header(find_recipe(name))).groups()
    assert config.removesuffix(".yaml") == name
    script, training, model, *_ = parse("--config", config, *flags.split(), name=command)
    assert model.model_name_or_path
    assert script.dataset_name
    assert training.output_dir.startswith("runs/")


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_what_it_is_its_hardware_and_whether_it_was_run(name):
    text = header(find_recipe(name))
    assert "# Hardware:" in text
    assert "Not run here." in text or "Run here" in text


@pytest.mark.parametrize("name", [n for n in NAMES if "qwen3" in n])
def test_the_paper_recipes_have_the_settings_of_the_paper(name):
    recipe = yaml.safe_load(find_recipe(name).read_text())
    paper = {
        "loss_support": "intersection",
        "loss_tail": "renormalize",
        "loss_top_k": 20,
        "stop_gradient": True,
        "num_generations": 1,
        "max_completion_length": 4096,
        "temperature": 1.0,
        "top_p": 0.95,
        "learning_rate": 2e-6,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "max_steps": 1000,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert {key: recipe[key] for key in paper} == paper
    assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * 8 == 64


def test_the_answer_recipe_says_that_it_is_expected_to_fail_and_why():
    text = header(find_recipe("math/opsd_qwen3_1.7b_answer"))
    assert "Expected to fail" in text
    assert "geometric" in text


def test_a_recipe_is_found_by_name_with_and_without_suffix_and_by_path(here):
    expected = recipes_dir() / "math" / "opd_qwen3_1.7b_from_8b.yaml"
    assert find_recipe("math/opd_qwen3_1.7b_from_8b") == expected
    assert find_recipe("math/opd_qwen3_1.7b_from_8b.yaml") == expected
    assert find_recipe(str(expected)) == expected


def test_a_file_of_that_path_wins_over_a_recipe_of_that_name(here):
    mine = here / "math" / "opd_qwen3_1.7b_from_8b.yaml"
    mine.parent.mkdir()
    mine.write_text("beta: 0.0\n")
    assert find_recipe("math/opd_qwen3_1.7b_from_8b.yaml").resolve() == mine


def test_a_missing_recipe_lists_the_nearest_or_all(here):
    with pytest.raises(ValueError, match=r"Nearest recipes: system_prompt/opsd_qwen3_1\.7b"):
        find_recipe("opsd_qwen3_1.7")
    with pytest.raises(ValueError, match=re.escape(", ".join(NAMES))):
        find_recipe("zzz")


def test_recipes_are_found_by_name_where_the_package_is_installed(tmp_path):
    site = tmp_path / "site"
    package = Path(opd_trl.__file__).parent
    shutil.copytree(package, site / "opd_trl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(recipes_dir(), site / "opd_trl" / "recipes", dirs_exist_ok=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shown = subprocess.run(
        [sys.executable, "-m", "opd_trl.cli.main", "recipes", "show", "math/opsd_qwen3_1.7b_answer"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown == find_recipe("math/opsd_qwen3_1.7b_answer").read_text()


def test_list_prints_every_recipe_with_its_first_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["recipes", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*NAMES, *accelerate_names()))
    assert "Qwen3-1.7B internalises a system prompt" in printed


def test_show_prints_the_file(capsys):
    assert main(["recipes", "show", "accelerate_configs/zero3"]) == 0
    assert "zero_stage: 3" in capsys.readouterr().out


@pytest.fixture
def recipe_with_files(here):
    folder = here / "source"
    (folder / "rows").mkdir(parents=True)
    (folder / "rows" / "train.jsonl").write_text("{}\n")
    (folder / "context.md").write_text("Be brief.")
    (folder / "unrelated.md").write_text("x")
    recipe = folder / "r.yaml"
    recipe.write_text("dataset_name: rows\nprivileged_context_file: context.md\nmodel_name_or_path: owner/name\n")
    return recipe


def test_copy_takes_the_files_along_that_the_recipe_names(recipe_with_files, here):
    assert side_files(recipe_with_files) == [Path("rows"), Path("context.md")]
    copy_recipe(str(recipe_with_files), Path("new/mine.yaml"))
    assert sorted(str(p.relative_to(here / "new")) for p in (here / "new").rglob("*") if p.is_file()) == [
        "context.md",
        "mine.yaml",
        "rows/train.jsonl",
    ]


def test_copy_into_a_folder_keeps_the_name(recipe_with_files, here, capsys):
    assert main(["recipes", "copy", str(recipe_with_files), "there"]) == 0
    assert (here / "there" / "r.yaml").read_text() == recipe_with_files.read_text()
    assert "wrote there/r.yaml" in capsys.readouterr().out


def test_copy_refuses_to_overwrite_and_writes_nothing(recipe_with_files, here, capsys):
    (here / "there").mkdir()
    (here / "there" / "context.md").write_text("mine")
    assert main(["recipes", "copy", str(recipe_with_files), "there"]) == 2
    assert "context.md exists and is not overwritten" in capsys.readouterr().err
    assert [p.name for p in (here / "there").iterdir()] == ["context.md"]
    assert (here / "there" / "context.md").read_text() == "mine"


def test_copy_goes_to_the_working_directory_by_default(here):
    assert main(["recipes", "copy", "system_prompt/opsd_qwen3_1.7b"]) == 0
    assert (here / "opsd_qwen3_1.7b.yaml").is_file()
