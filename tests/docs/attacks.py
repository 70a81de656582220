"""The table of faults in docs/security.md, made of the tests' own markers: `python -m tests.docs.attacks` writes it.

A test that plays an attack or a fault carries `@pytest.mark.attack(area, what is tried, what happens)`.
"""

import ast
from pathlib import Path

from tests.docs.pages import ROOT


PAGE = ROOT / "docs" / "security.md"
START, END = "<!-- faults: written by `python -m tests.docs.attacks` -->\n", "<!-- end of faults -->\n"
#: What a marker may name as its area, in the order of the page.
AREAS = {
    "processes": "Processes, signals and two at once",
    "recipes": "Recipes and templates of others",
    "server": "The teacher server, seen by a client",
    "client": "A teacher server that is wrong or hostile",
    "disk": "Power cuts, full disks, folders that cannot be written",
    "data": "Rows, logs and answers",
}


def attacks() -> list[tuple[str, str, str, str]]:
    """Area, what is tried, what happens, and the test, of every marker below tests/, in the order of the areas."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for marker in getattr(node, "decorator_list", ()):
                if isinstance(marker, ast.Call) and ast.unparse(marker.func) == "pytest.mark.attack":
                    area, tried, result = (ast.literal_eval(argument) for argument in marker.args)
                    found.append((area, tried, result, f"{path.relative_to(ROOT)}::{node.name}"))
    return sorted(found, key=lambda row: list(AREAS).index(row[0]))


def table() -> str:
    """The attacks as one table for each area."""
    lines, rows = [], attacks()
    for area, title in AREAS.items():
        lines += [f"### {title}", "", "| tried | result | test |", "|---|---|---|"]
        for _, tried, result, test in (row for row in rows if row[0] == area):
            lines.append(f"| {tried} | {result} | {linked(test)} |")
        lines.append("")
    return "\n".join(lines)


def linked(test: str) -> str:
    """A test by its name, without the folder that all share.

    >>> linked("tests/cli/test_data.py::test_two")
    '`cli/test_data.py::test_two`'
    """
    return f"`{test.removeprefix('tests/')}`"


def written(page: str) -> str:
    """The page with its table as the tests are now."""
    head, _, rest = page.partition(START)
    return f"{head}{START}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    Path(PAGE).write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
