"""Recipes: YAML files found by name or path, read with what they extend."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import opd_trl

from ..given import check_finite
from .strict_yaml import read_yaml


ACCELERATE = "accelerate_configs"
# Folders of files that are not recipes: of `accelerate launch`, `opd-trl eval` and `opd-trl reproduce`.
NO_RECIPES = (ACCELERATE, "protocols", "reproduce")
# The keys of a recipe that may name files lying beside it.
FILE_KEYS = ("dataset_name", "privileged_context_file", "accelerate_config")
EXTENDS = "extends"
#: Files that a recipe may consist of: itself, what it extends, what those extend.
MOST_FILES = 20


@dataclass(frozen=True)
class Recipe:
    """A recipe with the keys that it inherits.

    Args:
        path: the file.
        values: its keys and those of what it extends, `extends` itself left out.
        origins: the file in which each of the values stands.
        bases: every file that it extends, itself left out, the nearest last.
    """

    path: Path
    values: dict[str, Any]
    origins: dict[str, Path]
    bases: tuple[Path, ...]

    def resolved_values(self) -> dict[str, Any]:
        """The values; files that they name are looked for here, then beside the file that names them."""
        return {
            key: found_near(value, self.origins[key].resolve().parent)
            if key in FILE_KEYS and isinstance(value, str)
            else value
            for key, value in self.values.items()
        }


def recipes_dir() -> Path:
    """Return the folder of the recipes: inside the installed package, or at the top of a checkout."""
    package = Path(opd_trl.__file__).resolve().parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / ACCELERATE).is_dir():
            return folder
    raise FileNotFoundError(
        f"no recipes beside {package}: expected a folder recipes/ in it or next to it. Reinstall opd_trl."
    )


def all_names() -> list[str]:
    """Return the names of everything that can be run: training recipes and pipelines."""
    folder = recipes_dir()
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in names if name.split("/")[0] not in NO_RECIPES and not is_base(name))


def recipe_names() -> list[str]:
    """Return the names of all training recipes, e.g. `system_prompt/demo`."""
    return [name for name in all_names() if not is_pipeline(recipes_dir() / f"{name}.yaml")]


def pipeline_names() -> list[str]:
    """Return the names of all pipelines, e.g. `math/pipeline`."""
    return [name for name in all_names() if is_pipeline(recipes_dir() / f"{name}.yaml")]


def is_base(name: str) -> bool:
    """Is a file only there to be extended? Its name says so.

    >>> is_base("smoke/base"), is_base("smoke/base_opsd"), is_base("math/opd_qwen3_1.7b_base")
    (True, True, False)
    """
    return name.split("/")[-1].partition("_")[0] == "base"


def is_pipeline(path: Path) -> bool:
    """Does a file describe stages, for `opd-trl pipeline`, and no single training run?"""
    return "stages" in read_recipe(path).values


def accelerate_names() -> list[str]:
    """Return the names of our accelerate configurations, e.g. `zero3`."""
    return sorted(path.stem for path in (recipes_dir() / ACCELERATE).glob("*.yaml"))


def find_recipe(name: str, folder: Path | None = None) -> Path:
    """The file of a recipe: a path, or a name with or without `.yaml`, such as `system_prompt/demo`; the path wins.

    A relative path starts from `folder`, the working directory by default. Raises ValueError, which lists the nearest
    names, where there is neither.
    """
    start = folder or Path()
    for candidate in (start / Path(name).expanduser(), recipes_dir() / name, recipes_dir() / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    names = all_names()
    listed = ", ".join(nearest(name, names) or names)
    raise ValueError(
        f"{name!r} is neither a file (looked in {start.resolve()}) nor a recipe. Nearest recipes: {listed}. "
        "`opd-trl recipes list` shows all."
    )


def read_recipe(path: Path, chain: tuple[Path, ...] = (), known: dict[Path, Recipe] | None = None) -> Recipe:
    """Read a recipe and what it extends.

    `extends: base.yaml` takes over the keys of another file: a path from the folder of the recipe, or a recipe's name;
    or a list of them, of which later ones win. Files that are extended may extend others. The recipe's own keys win
    over all. A key is taken or replaced as a whole: a mapping such as `env` is not merged into the inherited one.

    `chain` are the files that extend this one, `known` those that have been read. Raises ValueError, which names the
    file, where one is missing, is not a YAML mapping of names, or extends itself, and for more than `MOST_FILES`.
    """
    known = {} if known is None else known
    if path.resolve() in (file.resolve() for file in chain):
        raise ValueError(f"a recipe extends itself: {' -> '.join(map(str, (*chain, path)))}. Take one link out.")
    if path.resolve() in known:
        return known[path.resolve()]
    if len(known) + len(chain) >= MOST_FILES:
        raise ValueError(f"{(*chain, path)[0]} extends more than {MOST_FILES - 1} files. Write some of them into one.")
    own = load_mapping(path)
    bases = [read_recipe(found, (*chain, path), known) for found in extended_files(path, own.pop(EXTENDS, None))]
    values, origins = {}, {}
    for base in bases:
        values.update(base.values)
        origins.update(base.origins)
    files = (file for base in bases for file in (*base.bases, base.path))
    bases = tuple(dict.fromkeys(files))
    known[path.resolve()] = Recipe(path, {**values, **own}, {**origins, **dict.fromkeys(own, path)}, bases)
    return known[path.resolve()]


def stacked(recipes: list[Recipe]) -> Recipe:
    """Return several recipes as one, in which the keys of later ones win."""
    first, *rest = recipes
    for recipe in rest:
        first = Recipe(
            recipe.path,
            {**first.values, **recipe.values},
            {**first.origins, **recipe.origins},
            (*first.bases, first.path, *recipe.bases),
        )
    return first


def load_mapping(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file; ValueError unless it maps names to values, all numbers finite."""
    content = read_yaml(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} must contain a YAML mapping of names to values, such as `learning_rate: 1.0e-6`.")
    try:
        check_finite(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return content


def extended_files(path: Path, extends: Any) -> list[Path]:
    """Return the files that `extends` in `path` names; raises ValueError where it names none or one is missing."""
    names = [extends] if isinstance(extends, str) else [] if extends is None else extends
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{EXTENDS} in {path} must be a file, a recipe's name or a list of them, got {extends!r}.")
    try:
        return [find_recipe(name, path.parent) for name in names]
    except ValueError as error:
        raise ValueError(f"{EXTENDS} in {path}: {error}") from None


def nearest(name: str, names: list[str]) -> list[str]:
    """Return up to three of `names` that are spelt like `name`, in whole or in their last part.

    >>> nearest("dmeo", ["math/opd", "system_prompt/demo"])
    ['system_prompt/demo']
    """
    name = name.removesuffix(".yaml")

    def likeness(candidate: str) -> float:
        parts = (candidate, *candidate.split("/"))
        return max(difflib.SequenceMatcher(None, name.split("/")[-1], part).ratio() for part in parts) + (
            difflib.SequenceMatcher(None, name, candidate).ratio()
        )

    return [candidate for candidate in sorted(names, key=likeness, reverse=True) if likeness(candidate) > 0.8][:3]


def found_near(value: str, folder: Path) -> str:
    """Return `value`, or the file or folder of that name in `folder` where the working directory has none."""
    path = Path(value)
    if path.is_absolute() or path.exists() or not (folder / path).exists():
        return value
    return str(folder / path)
