"""What goes out beside the code: container files, the citation, the templates of issues."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import opd_trl
from opd_trl.scripts import opd
from opd_trl.scripts.recipe_files import find_recipe


ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (extra dev)")
def test_a_dockerfile_passes_the_linter(path):
    found = subprocess.run([HADOLINT, "--no-color", str(path)], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_copies_what_there_is_and_installs_extras_that_there_are(path):
    text = path.read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split()[:-1])
    setup = (ROOT / "setup.cfg").read_text()
    for extras in re.findall(r"\.\[([\w,]+)\]", text):
        assert all(re.search(rf"^{extra} =$", setup, re.MULTILINE) for extra in extras.split(","))


def test_the_trainer_of_the_compose_file_is_a_command_that_parses():
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    name, *flags = shlex.split(services["trainer"]["command"])
    assert name == "opd"
    assert find_recipe(flags[flags.index("--config") + 1]).is_file()
    parsed = opd.make_parser().parse_args_and_config([*flags, "--use_cpu", "--bf16", "false"])
    assert parsed[1].teacher_server_url == "http://teacher:8000"
    assert parsed[1].teacher_model_name_or_path in shlex.split(services["teacher"]["command"])
    assert (ROOT / services["trainer"]["build"]["dockerfile"]).is_file()


def test_the_citation_names_this_version_and_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert opd_trl.__version__.startswith(cited["version"])
    assert "https://arxiv.org/abs/2605.11182" in [reference.get("url") for reference in cited["references"]]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_a_template_of_issues_has_what_a_form_needs(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(part["type"] in ("textarea", "input") and part["attributes"]["label"] for part in form["body"])
