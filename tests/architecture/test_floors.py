"""Seven floors: a room imports from lower floors alone, and nobody imports the command line."""

import subprocess
import sys
from collections import Counter

import pytest

from tests.architecture.house import FILES, FLOORS, PACKAGE, imports, name_of, room_of, rooms_imported


# What can be had without torch: rooms about text and files, and what the command line reads to print a help.
WITHOUT_TORCH = (
    "opd_trl",
    "opd_trl.durable",
    "opd_trl.given",
    "opd_trl.spelling",
    "opd_trl.privileged",
    "opd_trl.evaluation",
    "opd_trl.reports.page",
    "opd_trl.data.files",
    "opd_trl.data.jobs",
    "opd_trl.suites.protocol",
    "opd_trl.scripts.recipe_files",
    "opd_trl.scripts.launching",
    # A command loads torch when it has work to do, not to print its help.
    ", ".join(f"opd_trl.cli.{path.stem}" for path in FILES if path.parent.name == "cli"),
)


def test_every_folder_is_a_room_with_a_floor():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders == FLOORS.keys()
    assert set(FLOORS.values()) == set(range(1, 8))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_from_lower_floors_alone(path):
    room = room_of(path)
    if room is None:  # beside the rooms: the standard library alone
        modules = {module.split(".")[0] for module in imports(path)}
        assert modules <= {"opd_trl", *sys.stdlib_module_names}
        assert rooms_imported(path) == set()
        return
    upward = {other for other in rooms_imported(path) - {room} if FLOORS[other] >= FLOORS[room]}
    assert not upward, f"{name_of(path)} on floor {FLOORS[room]} imports {', '.join(sorted(upward))}"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) == "losses"], ids=name_of)
def test_losses_import_torch_alone(path):
    allowed = {"torch", "opd_trl", *sys.stdlib_module_names}
    assert [module for module in imports(path) if module.split(".")[0] not in allowed] == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_needs_no_torch_does_not_load_it(module):
    code = f"import sys, {module}; print([x for x in ('torch', 'transformers', 'trl') if x in sys.modules])"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert printed.stdout.strip() == "[]"


def test_no_room_imports_another_in_a_circle():
    """Files of one room may need each other, but not in a circle either: whoever reads one need not read all."""
    edges = {}
    modules = {".".join(["opd_trl", *p.relative_to(PACKAGE).with_suffix("").parts]): p for p in FILES}
    for module, path in modules.items():
        targets = set()
        for imported in imports(path):
            targets |= {imported, imported.rpartition(".")[0]} & modules.keys()
        edges[module] = targets - {module}
    left = dict(edges)
    while free := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in free:
            del left[module]
    # What remains either is in a circle or imports one; the shortest names say where to look.
    assert not left, f"circle among {sorted(left)[:6]}"


def test_a_module_name_occurs_once():
    counts = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []
