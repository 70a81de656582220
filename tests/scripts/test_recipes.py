import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import opd_trl
from opd_trl.cli.main import main
from opd_trl.cli.recipes import copy_recipe, side_files
from opd_trl.scripts.recipe_files import accelerate_names, all_names, find_recipe, recipe_names, recipes_dir


NAMES = recipe_names()


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
    with pytest.raises(ValueError, match=re.escape(", ".join(all_names()))):
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
