import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from opd_trl.cli.main import main
from opd_trl.cli.recipes import copy_recipe
from opd_trl.scripts.recipe_files import pipeline_names, read_recipe, recipe_names


def write(path: str, text: str = "", **content) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + (yaml.safe_dump(content, sort_keys=False) if content else ""))
    return file


@pytest.fixture
def family(here):
    """A small recipe in one folder that extends a large one in another, and a base beside it."""
    write("large/opd.yaml", "# Large.\n", loss_top_k=20, max_steps=1000, dataset_name="rows.jsonl", seed=1)
    write("large/rows.jsonl", "{}\n")
    write("small/base.yaml", "# Small.\n", max_steps=2, chat_template_kwargs={"enable_thinking": False})
    return write(
        "small/opd.yaml", "# Both.\nextends: [../large/opd.yaml, base.yaml] # in this order\n", learning_rate=1e-3
    )


def test_later_files_win_over_earlier_ones_and_own_keys_over_all(family, parse):
    write("mine.yaml", extends="small/opd.yaml", seed=7)
    _, training, *_ = parse("--config", "mine.yaml", "--learning_rate", "0.5")
    assert (training.loss_top_k, training.max_steps, training.seed) == (20, 2, 7)
    assert training.learning_rate == 0.5
    assert training.chat_template_kwargs == {"enable_thinking": False}


def test_a_mapping_replaces_the_inherited_one_as_a_whole(here, parse):
    write("base.yaml", chat_template_kwargs={"enable_thinking": False, "a": 1})
    write("r.yaml", extends="base.yaml", chat_template_kwargs={"b": 2})
    assert parse("--config", "r.yaml")[1].chat_template_kwargs == {"b": 2}


@pytest.fixture
def packaged(here, monkeypatch):
    """A recipe of the package, found by its name: `math/opd`."""
    monkeypatch.setattr("opd_trl.scripts.recipe_files.recipes_dir", lambda: here / "recipes")
    write("recipes/common.yaml", loss_top_k=20)
    return write("recipes/math/opd.yaml", "# Packaged.\n", extends="../common.yaml", seed=1)


def test_a_recipe_is_extended_by_its_name(packaged, here):
    write("r.yaml", extends="math/opd", seed=3)
    recipe = read_recipe(Path("r.yaml"))
    assert recipe.values == {"loss_top_k": 20, "seed": 3}
    assert [path.resolve() for path in recipe.bases] == [here / "recipes/common.yaml", here / "recipes/math/opd.yaml"]


def test_a_file_beside_the_recipe_is_meant_and_not_one_of_the_working_directory(here):
    write("base.yaml", seed=1)
    write("there/base.yaml", seed=2)
    assert read_recipe(write("there/r.yaml", extends="base.yaml")).values == {"seed": 2}


def test_files_are_looked_for_beside_the_file_that_names_them(family, parse, here):
    script, *_ = parse("--config", str(family))
    assert Path(script.dataset_name).resolve() == (here / "large" / "rows.jsonl").resolve()
    write("rows.jsonl", "{}\n")
    assert parse("--config", str(family))[0].dataset_name == "rows.jsonl"


def test_unknown_keys_are_reported_with_the_files_in_which_they_stand(here, refused):
    write("base.yaml", betta=1)
    write("r.yaml", extends="base.yaml", loss_top_kk=2)
    error = refused("--config", "r.yaml")
    assert "unknown key in base.yaml. betta: did you mean beta?" in error
    assert "unknown key in r.yaml. loss_top_kk: did you mean loss_top_k?" in error


def test_an_unknown_key_of_a_base_is_refused_though_the_recipe_replaces_everything_else(here, refused):
    write("base.yaml", datasets=[{"path": "a/b", "splitt": "train"}])
    write("r.yaml", extends="base.yaml")
    assert "unknown key under datasets in base.yaml" in refused("--config", "r.yaml")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"r.yaml": "extends: r.yaml\n"}, "extends itself: r.yaml -> r.yaml"),
        (
            {"r.yaml": "extends: b/c.yaml\n", "b/c.yaml": "extends: ../r.yaml\n"},
            "extends itself: r.yaml -> b/c.yaml -> b/../r.yaml",
        ),
        ({"r.yaml": "extends: [no.yaml]\n"}, "extends in r.yaml: 'no.yaml' is neither a file (looked in"),
        ({"r.yaml": "extends: {a: b}\n"}, "extends in r.yaml must be a file, a recipe's name or a list of them"),
        ({"r.yaml": "extends: [1]\n"}, "extends in r.yaml must be a file"),
        ({"r.yaml": "extends: b.yaml\n", "b.yaml": "- 1\n"}, "b.yaml must contain a YAML mapping"),
        ({"r.yaml": "extends: b.yaml\n", "b.yaml": "a: [1\n"}, "b.yaml is not valid YAML"),
        ({"r.yaml": "extends: b.yaml\n", "b.yaml": "env: x\n"}, "env in b.yaml must map names to values"),
        (
            {"r.yaml": "extends: b.yaml\n", "b.yaml": "stages: {}\n"},
            "b.yaml is a pipeline. Run it with `opd-trl pipeline",
        ),
    ],
)
def test_what_cannot_be_extended_is_one_line_that_names_the_file(files, message, here, refused):
    for path, text in files.items():
        write(path, text)
    assert message in refused("--config", "r.yaml")


def test_bytes_that_are_no_text_name_the_file(here, refused):
    Path("r.yaml").write_bytes(b"seed: \xff\n")
    assert "r.yaml is not UTF-8 text" in refused("--config", "r.yaml")


def test_two_recipes_may_share_a_base(here):
    write("base.yaml", seed=1)
    write("a.yaml", extends="base.yaml", beta=0.1)
    write("b.yaml", extends="base.yaml", seed=2)
    recipe = read_recipe(write("r.yaml", extends=["a.yaml", "b.yaml"]))
    assert recipe.values == {"seed": 2, "beta": 0.1}
    assert recipe.bases == (Path("base.yaml"), Path("a.yaml"), Path("b.yaml"))


def test_environment_variables_of_a_base_are_set(here, parse, monkeypatch):
    monkeypatch.setenv("OPD_TRL_TEST", "before")
    write("base.yaml", env={"OPD_TRL_TEST": "after"})
    parse("--config", str(write("r.yaml", extends="base.yaml")))
    assert os.environ["OPD_TRL_TEST"] == "after"


def test_launch_flags_of_a_base_reach_accelerate(here, parse):
    write("base.yaml", num_processes=2, use_cpu=True)
    *_, from_recipe, _ = parse("--config", str(write("r.yaml", extends="base.yaml")))
    assert from_recipe == ["--num_processes", "2"]


def test_the_launched_script_reads_what_a_recipe_extends(family):
    Path("small/base.yaml").write_text("max_stepz: 3\n")
    run = subprocess.run(
        [sys.executable, "-m", "opd_trl.scripts.opd", "--config", str(family)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "unknown key in small/base.yaml. max_stepz: did you mean max_steps?" in run.stderr


def test_show_prints_the_file_and_with_resolved_all_keys_and_where_they_stand(family, capsys):
    assert main(["recipes", "show", str(family)]) == 0
    assert capsys.readouterr().out == family.read_text()
    assert main(["recipes", "show", "--resolved", str(family)]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown) == read_recipe(family).resolved_values()
    assert "# ../large/opd.yaml\nloss_top_k: 20\n# base.yaml\nmax_steps: 2\n" in shown
    assert "# opd.yaml\nlearning_rate: 0.001" in shown


def test_copy_takes_extended_files_along_and_the_copy_reads_the_same(family, here):
    before = read_recipe(family).values
    written = copy_recipe(str(family), here / "copy")
    assert sorted(str(path.relative_to(here / "copy")) for path in written) == [
        "base.yaml",
        "large/opd.yaml",
        "large/rows.jsonl",
        "opd.yaml",
    ]
    assert "extends: [large/opd.yaml, base.yaml] # in this order" in (here / "copy" / "opd.yaml").read_text()
    assert (here / "copy" / "base.yaml").read_text() == Path("small/base.yaml").read_text()
    assert read_recipe(here / "copy" / "opd.yaml").values == before
    assert all(path.is_relative_to(here / "copy") for path in read_recipe(here / "copy" / "opd.yaml").bases)


def test_copy_to_a_file_of_another_name_takes_recipes_extended_by_name_along(packaged):
    write("mine/r.yaml", "extends: math/opd # the large run\nseed: 3\n")
    copy_recipe("mine/r.yaml", Path("copy/mine.yaml"))
    assert Path("copy/mine.yaml").read_text() == "extends: math/opd.yaml # the large run\nseed: 3\n"
    assert Path("copy/math/opd.yaml").read_text() == "# Packaged.\nextends: ../recipes/common.yaml\nseed: 1\n"
    assert read_recipe(Path("copy/mine.yaml")).values == read_recipe(Path("mine/r.yaml")).values


def test_copy_of_a_pipeline_takes_the_recipes_of_its_stages_along(family, here):
    write(
        "small/p.yaml",
        "stages:\n  a: {run: opd-trl opd, config: opd.yaml}\n  b: {run: trl sft, config: ../x/s.yaml}\n",
    )
    write("x/s.yaml", extends="t.yaml")
    write("x/t.yaml", seed=1)
    copy_recipe("small/p.yaml", Path("copy"))
    files = sorted(str(path.relative_to("copy")) for path in Path("copy").rglob("*.yaml"))
    assert files == ["base.yaml", "large/opd.yaml", "opd.yaml", "p.yaml", "x/s.yaml", "x/t.yaml"]
    assert "config: x/s.yaml" in Path("copy/p.yaml").read_text()
    assert read_recipe(Path("copy/x/s.yaml")).values == {"seed": 1}


def test_copy_refuses_two_files_for_one_place_and_writes_nothing(here):
    write("a/x/b.yaml", seed=1)
    write("a/r/x/b.yaml", seed=2)
    write("a/r/r.yaml", extends=["x/b.yaml", "../x/b.yaml"])
    with pytest.raises(ValueError, match=re.escape("two files of a/r/r.yaml would be copied to copy/x/b.yaml")):
        copy_recipe("a/r/r.yaml", Path("copy"))
    assert not Path("copy").exists()


def test_bases_protocols_and_pipelines_are_no_training_recipes(here, monkeypatch, capsys):
    monkeypatch.setattr("opd_trl.scripts.recipe_files.recipes_dir", lambda: here)
    monkeypatch.setenv("COLUMNS", "200")
    write("accelerate_configs/cpu.yaml", use_cpu=True)
    write("protocols/short.yaml", temperature=0.6)
    write("smoke/base.yaml", seed=1)
    write("smoke/opd.yaml", "# A run.\n", extends="base.yaml")
    write("smoke/pipeline.yaml", "# Stages.\n", stages={})
    write("smoke/again.yaml", "# Inherited stages.\n", extends="pipeline.yaml")
    assert recipe_names() == ["smoke/opd"]
    assert pipeline_names() == ["smoke/again", "smoke/pipeline"]
    assert main(["recipes", "list"]) == 0
    printed = capsys.readouterr().out
    assert "smoke/opd" in printed
    assert "Inherited stages." in printed
    assert "protocols" not in printed


def test_a_plan_sees_the_teacher_of_a_base(here):
    from opd_trl.scripts.recipe_command import peek

    write("base.yaml", teacher_model_name_or_path="Qwen/Qwen3-8B")
    write("r.yaml", extends="base.yaml", max_steps=3)
    assert peek(["--config", "r.yaml"])["teacher_model_name_or_path"] == "Qwen/Qwen3-8B"
