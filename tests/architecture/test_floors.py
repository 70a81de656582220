"""Imports point downward only, only trainers/ subclasses TRL, and files stay readable."""

import ast
import sys
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[2] / "opd_trl"
FLOORS = {
    "losses": 0,
    "privileged": 1,
    "teachers": 1,
    "evaluation": 1,
    "diagnostics": 1,
    "data": 2,
    "trainers": 2,
    "preflight": 3,
    "reproduce": 3,
    "scripts": 3,
    "serving": 3,
    "cli": 3,
}
FILES = sorted(PACKAGE.rglob("*.py"))
# Scripts are what the CLI launches and parse with its parser.
PARSERS = {"TrlParser", "ScriptArguments", "GRPOScriptArguments"}
# An experiment of the study, which changes the public trainer as a user would.
EXPERIMENTS = {"reproduce/controls.py"}


def imports(path: Path) -> list[str]:
    """Absolute names of the modules that a file imports."""
    package = ["opd_trl", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            found.append(".".join([*base, *([node.module] if node.module else [])]))
    return found


def floor_of(module: str) -> int | None:
    parts = module.split(".")
    return FLOORS.get(parts[1]) if parts[0] == "opd_trl" and len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward_only(path):
    own = FLOORS.get(path.relative_to(PACKAGE).parts[0])
    for module in imports(path):
        other = floor_of(module)
        same_room = path.relative_to(PACKAGE).parts[0] == [*module.split("."), ""][1]
        if own is None or other is None or same_room:
            continue
        assert other < own or own == 3, f"{path.name} on floor {own} imports {module} from floor {other}"


def test_every_folder_has_a_floor():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"} == FLOORS.keys()


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "losses"], ids=lambda p: p.name)
def test_losses_import_torch_alone(path):
    allowed = {"torch", "opd_trl", *sys.stdlib_module_names}
    assert [m for m in imports(path) if m.split(".")[0] not in allowed] == []


def test_only_trainers_subclass_trl_and_only_losses_normalise_logits():
    for path in FILES:
        room = path.relative_to(PACKAGE).parts[0]
        text = path.read_text()
        if room != "losses":
            assert "log_softmax" not in text, f"{path}: a line with a log_softmax belongs to losses/"
        for node in ast.walk(ast.parse(text)):
            own_trainer = room == "trainers" or str(path.relative_to(PACKAGE)) in EXPERIMENTS
            if isinstance(node, ast.ClassDef) and not own_trainer:
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                assert not {b for b in bases if b.startswith(("GRPO", "OPD", "OPSD"))} - PARSERS, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_has_at_most_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300
