"""What every recipe must say and hold."""

import re

import pytest

from opd_trl.scripts.recipe_files import find_recipe, read_recipe, recipe_names, recipes_dir
from opd_trl.trainers.config.published_methods import METHODS


COMMAND = re.compile(r"opd-trl (opd|opsd) (--config .*)")
NAMES = recipe_names()
FOLDERS = sorted({name.split("/")[0] for name in NAMES})


def header(name: str) -> str:
    lines = find_recipe(name).read_text().splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def command_of(name: str) -> tuple[str, list[str]]:
    """The training command of a recipe's header: `opd` or `opsd`, and its flags."""
    command, flags = COMMAND.search(header(name)).groups()
    return command, flags.split()


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_parses_strictly_with_the_command_of_its_header(name, parse):
    command, flags = command_of(name)
    assert flags[flags.index("--config") + 1 :: 2].count(name) == 1
    script, training, model, *_ = parse(*flags, name=command)
    assert model.model_name_or_path
    assert script.dataset_name
    assert training.output_dir.startswith("runs/")


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_what_it_is_its_hardware_and_whether_it_was_run(name):
    text = header(name)
    assert "# Hardware:" in text
    assert "Not run here" in text or re.search(r"Run here\b", text)
    assert max(map(len, find_recipe(name).read_text().splitlines())) <= 120


@pytest.mark.parametrize("name", [n for n in NAMES if "qwen3" in n])
def test_the_paper_recipes_have_the_settings_of_the_paper(name, parse):
    command, flags = command_of(name)
    training = parse(*flags, name=command)[1]
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
    assert {key: getattr(training, key) for key in paper} == paper
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 8 == 64


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_in_which_nothing_overrides_it(name, parse, caplog):
    command, flags = command_of(f"methods/{name}")
    assert command in METHODS[name].commands
    training = parse(*flags, name=command)[1]
    differs = {key for key, value in METHODS[name].fields.items() if getattr(training, key) != value}
    # A sibling's success is a solution; the method alone reads a column of feedback.
    assert differs == ({"privileged_builder"} if name == "sdpo" else set())
    assert "is published with" not in caplog.text


@pytest.mark.parametrize("name", ["math/opsd_qwen3_1.7b_answer", "math/opsd_qwen3_1.7b_solution"])
def test_the_recipes_that_are_expected_to_fail_say_so_and_why(name):
    assert "Expected to fail" in header(name)
    assert "geometric" in header(name)


def test_the_conciseness_recipe_refreshes_its_teacher(parse):
    training = parse(*command_of("system_prompt/conciseness")[1])[1]
    assert (training.teacher_model_kind, training.teacher_update_rate, training.teacher_sync_steps) == ("ema", 1.0, 50)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_has_a_readme_that_names_its_recipes(folder):
    text = (recipes_dir() / folder / "README.md").read_text()
    missing = [name for name in NAMES if name.startswith(f"{folder}/") and name.split("/", 1)[1] not in text]
    assert missing == []


def test_a_base_is_extended_by_something():
    extended = {base for name in NAMES for base in read_recipe(find_recipe(name)).bases}
    bases = set(recipes_dir().rglob("base*.yaml"))
    assert {path.resolve() for path in extended} >= {path.resolve() for path in bases}
