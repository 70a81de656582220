"""Every recipe, shrunk by recipes/smoke, trains on the toy model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from opd_trl.cli.main import main
from opd_trl.scripts import opd, opsd
from opd_trl.scripts.recipe_files import recipe_names
from tests.recipes.test_contents import command_of


RECIPES = [name for name in recipe_names() if name.split("/")[0] not in ("smoke", "agents")]


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """A folder in which `opd-trl toy` was run."""
    folder = tmp_path_factory.mktemp("toy")
    assert main(["toy", "--output", str(folder / "runs" / "toy")]) == 0
    return folder


@pytest.fixture
def beside_toy(toy, tmp_path, monkeypatch) -> Path:
    """An empty working directory with the toy model where the smoke overlays look for it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "toy").symlink_to(toy / "runs" / "toy")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_two_steps_and_saves(name, beside_toy, make_parser):
    command, _ = command_of(name)
    script = {"opd": opd, "opsd": opsd}[command]
    parsed = make_parser(command).parse_args_and_config(["--config", name, "--config", f"smoke/{command}"])
    script.check_arguments(*parsed)
    script.main(*parsed)
    saved = {path.name for path in (beside_toy / "runs" / "smoke").iterdir()}
    assert saved & {"model.safetensors", "adapter_model.safetensors"}


def test_the_agents_recipe_trains_on_the_toy_with_tools(here, make_parser):
    assert main(["toy", "--task", "calculator", "--output", "runs/calculator"]) == 0
    flags = ["--model_name_or_path", "runs/calculator/model", "--max_steps", "2"]
    parsed = make_parser("opsd").parse_args_and_config(["--config", "agents/calculator", *flags])
    opsd.check_arguments(*parsed)
    opsd.main(*parsed)
    assert (here / "runs/calculator/opsd/model.safetensors").is_file()


@pytest.mark.parametrize("name", ["methods/vopd", "system_prompt/persona"])
def test_the_command_of_the_smoke_readme_runs_as_processes(name, beside_toy):
    command, _ = command_of(name)
    argv = [
        "-m",
        "opd_trl.cli.main",
        command,
        "--config",
        name,
        "--config",
        f"smoke/{command}",
        "--save_strategy",
        "steps",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *argv], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    state = json.loads((beside_toy / "runs/smoke/checkpoint-2/trainer_state.json").read_text())
    losses = [row["loss"] for row in state["log_history"] if "loss" in row]
    assert len(losses) == 2
    assert all(loss == loss for loss in losses)
