"""Files and folders that can be read, and who may know what of TRL."""

import ast
import re
from collections import Counter

import pytest

from tests.architecture.house import FILES, PACKAGE, name_of, room_of


# Scripts are what the command line launches; they parse with TRL's parser.
PARSERS = {"TrlParser", "ScriptArguments", "GRPOScriptArguments"}
# An experiment of the study, which changes the public trainer as a user would.
EXPERIMENT = "reproduce/controls.py"
# A trainer's private state, TRL's or ours: the trainer itself (`self._x`) and what saves a checkpoint know it.
PRIVATE = re.compile(r"\btrainer\._[a-z]")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_has_at_most_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_a_folder_has_at_most_20_files():
    counts = Counter(path.parent for path in FILES)
    assert {folder.name: count for folder, count in counts.items() if count > 20} == {}


def test_only_trainers_subclass_trl_and_only_losses_normalise_logits():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if room_of(path) != "losses":
            assert "log_softmax" not in text, f"{path}: a line with a log_softmax belongs to losses/"
        if room_of(path) == "trainers" or name_of(path) == EXPERIMENT:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                assert not {b for b in bases if b.startswith(("GRPO", "OPD", "OPSD"))} - PARSERS, path


def test_a_trainers_private_state_is_known_to_one_file_beside_it():
    assert [name_of(path) for path in FILES if PRIVATE.search(path.read_text(encoding="utf-8"))] == [
        "trainers/resume.py"
    ]


def test_nobody_outside_teachers_asks_what_kind_a_teacher_is():
    asks = re.compile(r"isinstance\([^)]*Teacher\)|teacher\.model is None|hasattr\([^)]*teacher_model_kind")
    found = [name_of(p) for p in FILES if room_of(p) != "teachers" and asks.search(p.read_text(encoding="utf-8"))]
    # The configuration says once whether the student is its own teacher: `teaches_itself`.
    assert found == ["trainers/config/opd_config.py"]


def test_the_command_line_is_thin():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES if room_of(path) == "cli")
    assert lines < 4000


def test_imports_inside_functions_are_few():
    """Each one costs a reader a surprise. They stay where a command must answer fast, or a package is optional."""
    inside = 0
    for path in FILES:
        functions = (
            n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)
        )
        nodes = {node for function in functions for node in ast.walk(function)}
        inside += sum(isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes)
    assert inside <= 60


def test_what_a_room_exports_is_typed():
    """Every function of `__all__`, and every public method of its classes: a type checker reads them (py.typed)."""
    untyped = []
    for init in PACKAGE.rglob("__init__.py"):
        assigned = (node for node in ast.parse(init.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign))
        exported = {x for node in assigned if node.targets[0].id == "__all__" for x in ast.literal_eval(node.value)}
        for path in sorted(init.parent.glob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if getattr(node, "name", None) in exported:
                    untyped += [
                        f"{name_of(path)}: {function.name}" for function in public(node) if not is_typed(function)
                    ]
    assert untyped == []


def public(node: ast.FunctionDef | ast.ClassDef) -> list[ast.FunctionDef]:
    """A function, or the methods of a class that others call."""
    found = [node] if isinstance(node, ast.FunctionDef) else node.body
    return [
        x for x in found if isinstance(x, ast.FunctionDef) and (x.name == "__init__" or not x.name.startswith("_"))
    ]


def is_typed(function: ast.FunctionDef) -> bool:
    """Has every argument a type, and what it returns?"""
    given = function.args
    own = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    typed = all(x.annotation is not None for x in own if x.arg not in ("self", "cls"))
    return typed and (function.returns is not None or function.name == "__init__")
