"""The words that docs/troubleshooting.md tells a reader to look for are words that the package says."""

import ast
import re
from pathlib import Path

import pytest

import opd_trl

from .pages import ROOT


PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def texts(path: Path) -> list[str]:
    """The strings of a module; what is filled in stands as `...`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


SAID = "\n".join(text for path in sorted(Path(opd_trl.__file__).parent.rglob("*.py")) for text in texts(path))
ROWS = re.findall(r"^\| (.+?) \| .+? \| .+? \|$", PAGE, re.MULTILINE)
SEEN = sorted({phrase for row in ROWS for phrase in re.findall(r"`([^`]+)`", row)})
OF_TRL = {"step_time"}  # the trainer's own log


@pytest.mark.parametrize("phrase", SEEN)
def test_what_a_reader_looks_for_is_said(phrase):
    pattern = r"[\s\S]{0,200}".join(re.escape(part.strip()) for part in phrase.split("...") if part.strip())
    assert phrase in OF_TRL or re.search(pattern, SAID)


def test_there_are_enough_of_them():
    assert len(SEEN) > 20
