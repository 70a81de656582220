"""The blocks of code on the pages: Python parses, imports resolve, configurations can be built; YAML parses."""

import ast
import importlib
import inspect

import pytest
import yaml

from .pages import blocks


PYTHON, YAML = blocks("python"), blocks("yaml")
#: Makes the configurations of pages, which are written for GPUs, build on a CPU.
ON_A_CPU = {"use_cpu": True, "bf16": False}


def imported(tree: ast.AST) -> dict[str, object]:
    """What the statements `from opd_trl... import` and `from trl... import` of a block bring."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("opd_trl", "trl"):
            module = importlib.import_module(node.module)
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "opd_trl":
                    importlib.import_module(alias.name)
    return names


def calls(tree: ast.AST, names: dict[str, object], ending: str) -> list[tuple[type, dict[str, ast.expr]]]:
    """Calls of imported classes whose name ends so, with their keywords."""
    return [
        (names[node.func.id], {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg})
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id.endswith(ending) and node.func.id in names
    ]


def test_there_are_blocks_to_check():
    assert len(PYTHON) > 10
    assert len(YAML) > 3


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_python_block_parses_and_its_imports_resolve(block):
    imported(ast.parse(block.code))


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_the_configurations_of_a_python_block_can_be_built(block, tmp_path):
    tree = ast.parse(block.code)
    for config, keywords in calls(tree, imported(tree), "Config"):
        values = {}
        for name, value in keywords.items():
            try:
                values[name] = ast.literal_eval(value)
            except ValueError:  # a variable of the reader's
                assert name in inspect.signature(config).parameters
        config(**{**values, "output_dir": str(tmp_path), **ON_A_CPU})


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_the_trainers_of_a_python_block_take_its_arguments(block):
    from trl import GRPOTrainer

    from opd_trl import OPDTrainer

    tree = ast.parse(block.code)
    for trainer, keywords in calls(tree, imported(tree), "Trainer"):
        known = set(inspect.signature(trainer).parameters)
        if issubclass(trainer, OPDTrainer):
            known |= {*inspect.signature(OPDTrainer).parameters, *inspect.signature(GRPOTrainer).parameters}
        assert keywords.keys() <= known


@pytest.mark.parametrize("block", YAML, ids=str)
def test_a_yaml_block_parses(block):
    assert isinstance(yaml.safe_load(block.code), dict)


@pytest.mark.parametrize("block", [block for block in YAML if block.page.name == "cheat-sheet.md"], ids=str)
def test_a_recipe_of_the_cheat_sheet_is_read_strictly(block, tmp_path):
    from opd_trl.scripts import opd, opsd

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(block.code, encoding="utf-8")
    command = opsd if "privileged_context" in block.code else opd
    argv = ["--config", str(recipe), "--output_dir", str(tmp_path / "out"), "--use_vllm", "false"]
    _, training_args, *_ = command.make_parser().parse_args_and_config([*argv, "--use_cpu", "true", "--bf16", "false"])
    assert training_args.max_steps == yaml.safe_load(block.code)["max_steps"]
