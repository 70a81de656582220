"""The README's own code runs, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from opd_trl.scripts.recipe_files import find_recipe


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("index", range(len(PYTHON)))
def test_a_python_block_of_the_readme_trains(index, tmp_path, student_path, teacher_path, monkeypatch):
    """On the tiny models, two short steps on the CPU; nothing else of the block is changed."""
    monkeypatch.chdir(tmp_path)
    import opd_trl

    limits = {"use_cpu": True, "bf16": False, "max_steps": 2, "max_completion_length": 4, "report_to": "none"}
    for name in ("OPDConfig", "OPSDConfig"):
        config = getattr(opd_trl, name)
        original = config.__post_init__

        def post_init(self, original=original):
            for field, value in limits.items():
                setattr(self, field, value)
            original(self)

        monkeypatch.setattr(config, "__post_init__", post_init)
    code = PYTHON[index].replace("Qwen/Qwen3-1.7B", student_path).replace("Qwen/Qwen3-8B", teacher_path)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["trainer"].state.global_step == 2


def test_the_make_targets_and_recipes_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = [shlex.split(command)[1] for command in COMMANDS if command.startswith("make ")]
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    recipes = re.findall(r"--config (\S+)", " ".join(COMMANDS))
    assert recipes
    assert all(find_recipe(name).is_file() for name in recipes)


def test_the_links_of_the_readme_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_the_readme_fits_on_three_screens():
    assert len(README.splitlines()) < 150
