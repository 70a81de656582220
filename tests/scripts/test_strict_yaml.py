"""YAML of others: what is ambiguous or out of bounds is one line that names the file."""

import pytest

from opd_trl.cli.pipelines.document import read_pipeline
from opd_trl.reproduce.settings import SettingsError, read_settings
from opd_trl.scripts import strict_yaml
from opd_trl.scripts.launching import num_processes
from opd_trl.scripts.recipe_files import MOST_FILES, load_mapping, read_recipe
from opd_trl.scripts.strict_yaml import parse_yaml
from opd_trl.suites.protocol import load_protocol


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{key}: &{key} [{', '.join(['*' + before] * 9)}]\n" for before, key in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.attack(
    "recipes", "YAML with a key given twice, aliases that multiply, endless depth or loops", "one line"
)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rate: 1\nother: 2\nrate: 3", "the key rate is given twice, in line 1 and in line 3"),
        ("'rate': 1\nrate: 3", "the key rate is given twice, in line 1 and in line 2"),
        ("env:\n  A: 1\n  A: 2", "the key A is given twice, in line 2 and in line 3"),
        ("1: a\n0x1: b", "the key 0x1 is given twice"),
        ("b: &b {x: 1}\nc: {<<: *b, <<: *b}", "the key << is given twice"),
        (LAUGHS, "stands for more than 100,000 values"),
        ("a: &a [1, *a]", "an alias repeats what it stands in"),
        ("&x {a: *x}", "an alias repeats what it stands in"),
        ("a: " + "[" * 300 + "]" * 300, "nested deeper than 100"),
        ("\n".join(" " * i + "a:" for i in range(300)), "nested deeper than 100"),
        ("- " * 3000, "nested deeper than 100"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: 2020-99-99", "month must be in"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: \x01", "unacceptable character"),
    ],
)
def test_yaml_out_of_bounds_is_one_line(text, said):
    with pytest.raises(ValueError, match=r"^r\.yaml") as error:
        parse_yaml(text, "r.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_yaml_is_for_works_as_ever():
    text = "base: &base {x: 1, y: [1, 2]}\nown:\n  <<: *base\n  x: 3\nagain: *base"
    assert parse_yaml(text, "r.yaml") == {"base": {"x": 1, "y": [1, 2]}, "own": {"x": 3, "y": [1, 2]}} | {
        "again": {"x": 1, "y": [1, 2]}
    }


@pytest.mark.attack("recipes", "a key twice, NaN or a large file in every kind of YAML that a user gives", "refused")
@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "a: .nan\n", "a: {b: [.inf]}\n", "large"])
@pytest.mark.parametrize(
    "read",
    [
        load_mapping,
        read_recipe,
        load_protocol,
        read_settings,
        lambda path: read_pipeline(str(path), []),
        lambda path: num_processes(["--accelerate_config", str(path)]),
    ],
)
def test_every_reader_of_yaml_is_the_strict_one(read, text, here, monkeypatch):
    monkeypatch.setattr(strict_yaml, "MOST_BYTES", 100)
    path = here / "r.yaml"
    path.write_text("# " + "x" * 200 if text == "large" else text)
    with pytest.raises((ValueError, SettingsError), match=r"r.yaml.*(given twice|finite|a YAML file has 100 at most)"):
        read(path)


@pytest.mark.attack(
    "recipes", "recipes that extend one another without end, or double at every step", "refused, read once"
)
def test_extends_is_bounded(here):
    for number in range(MOST_FILES + 2):
        (here / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    with pytest.raises(ValueError, match=f"0.yaml extends more than {MOST_FILES - 1} files"):
        read_recipe(here / "0.yaml")
    (here / f"{MOST_FILES - 1}.yaml").write_text("seed: 1\n")
    for number in range(MOST_FILES - 1):
        (here / f"{number}.yaml").write_text(f"extends: [{', '.join([f'{number + 1}.yaml'] * 20)}]\n")
    assert read_recipe(here / "0.yaml").values == {"seed": 1}
