import configparser
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import opd_trl


ROOT = Path(opd_trl.__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "setup.cfg").is_file(), reason="not a checkout")


@pytest.fixture(scope="module")
def setup_cfg():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def test_every_package_is_listed_in_setup_cfg(setup_cfg):
    modules = {path.parent.relative_to(ROOT) for path in (ROOT / "opd_trl").rglob("*.py")}
    listed = set(setup_cfg["options"]["packages"].split())
    assert listed == {".".join(path.parts) for path in modules} | {"opd_trl.recipes"}


def test_every_file_of_the_recipes_is_installed(setup_cfg):
    globs = setup_cfg["options.package_data"]["opd_trl.recipes"].split()
    files = [path for path in (ROOT / "recipes").rglob("*") if path.is_file()]
    left_out = [path for path in files if not any(fnmatch(path.name, Path(glob).name) for glob in globs)]
    assert left_out == []
    assert setup_cfg["options"]["package_dir"].split() == ["opd_trl.recipes", "=", "recipes"]


def test_the_mark_of_a_typed_package_is_installed(setup_cfg):
    assert (ROOT / "opd_trl" / "py.typed").is_file()
    assert "py.typed" in setup_cfg["options.package_data"]["opd_trl"].split()


def test_pyproject_holds_only_the_build_system_and_ruff():
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert content.keys() == {"build-system", "tool"}
    assert content["tool"].keys() == {"ruff"}


def test_the_demo_extra_does_not_pull_what_compiles(setup_cfg):
    requirements = (
        setup_cfg["options.extras_require"]["demo"].split() + setup_cfg["options"]["install_requires"].split()
    )
    assert not any("smollm" in name or "llama" in name for name in requirements)
