"""The package as the tests of its architecture read it: rooms, floors, files, imports."""

import ast
from pathlib import Path


PACKAGE = Path(__file__).parents[2] / "opd_trl"
#: Room -> floor. A room imports from lower floors alone; files beside the rooms stand below all of them.
FLOORS = {
    "losses": 1,
    "privileged": 1,
    "evaluation": 1,
    "diagnostics": 1,
    "models": 2,
    "reports": 2,
    "teachers": 3,
    "data": 3,
    "trainers": 4,
    "serving": 4,
    "preflight": 5,
    "scripts": 5,
    "suites": 6,
    "planning": 6,
    "reproduce": 6,
    "cli": 7,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """A file as test ids show it: `losses/head.py`."""
    return str(path.relative_to(PACKAGE))


def room_of(path: Path) -> str | None:
    """The room in which a file lies; None beside the rooms."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def imports(path: Path) -> list[str]:
    """Absolute names of everything that a file imports, inside functions too.

    `from ..losses import head` names `opd_trl.losses.head`, so that a room which is imported by name is seen.
    """
    package = ["opd_trl", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            found += [".".join([*module, alias.name]) for alias in node.names]
    return found


def rooms_imported(path: Path) -> set[str]:
    """The rooms that a file imports from, its own among them."""
    names = (module.split(".") for module in imports(path))
    return {parts[1] for parts in names if parts[0] == "opd_trl" and len(parts) > 1 and parts[1] in FLOORS}
