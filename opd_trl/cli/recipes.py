"""Recipes: YAML files found by name or path, and `opd-trl recipes list|show|copy`."""

import argparse
import difflib
import shutil
import sys
from pathlib import Path

import opd_trl


ACCELERATE = "accelerate_configs"
# The keys of a recipe that may name files lying beside it.
FILE_KEYS = ("dataset_name", "privileged_context_file", "accelerate_config")


def recipes_dir() -> Path:
    """Return the folder of the recipes: inside the installed package, or at the top of a checkout."""
    package = Path(opd_trl.__file__).resolve().parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / ACCELERATE).is_dir():
            return folder
    raise FileNotFoundError(
        f"no recipes beside {package}: expected a folder recipes/ in it or next to it. Reinstall opd_trl."
    )


def recipe_names() -> list[str]:
    """Return the names of all training recipes, e.g. `system_prompt/demo`."""
    folder = recipes_dir()
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith(f"{ACCELERATE}/"))


def accelerate_names() -> list[str]:
    """Return the names of our accelerate configurations, e.g. `zero3`."""
    return sorted(path.stem for path in (recipes_dir() / ACCELERATE).glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: a path, or a name with or without `.yaml`: `system_prompt/demo`, `accelerate_configs/zero3`. A file of
            that path wins over a recipe of that name.

    Raises:
        ValueError: there is neither; the message lists the nearest names.
    """
    for candidate in (Path(name).expanduser(), recipes_dir() / name, recipes_dir() / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    names = recipe_names()
    listed = ", ".join(nearest(name, names) or names)
    raise ValueError(
        f"{name!r} is neither a file (looked in {Path.cwd()}) nor a recipe. Nearest recipes: {listed}. "
        "`opd-trl recipes list` shows all."
    )


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


def beside(value: str, folder: Path) -> str:
    """Return `value`, or the file or folder of that name in `folder` where the working directory has none."""
    path = Path(value)
    if path.is_absolute() or path.exists() or not (folder / path).exists():
        return value
    return str(folder / path)


def side_files(recipe: Path) -> list[Path]:
    """Return the files and folders beside a recipe that it names, relative to its folder."""
    import yaml

    content = yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}
    named = [Path(content[key]) for key in FILE_KEYS if isinstance(content.get(key), str)]
    return [path for path in named if not path.is_absolute() and (recipe.parent / path).exists()]


def summary(recipe: Path) -> str:
    """Return the first comment line of a recipe: what it is."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")


def copy_recipe(name: str, destination: Path) -> list[Path]:
    """Copy a recipe and the files it names; return what was written.

    Args:
        name: as in `find_recipe`.
        destination: a `.yaml` file, or a folder, created if needed. The side files keep their place beside the recipe.

    Raises:
        ValueError: no such recipe.
        FileExistsError: something is there already; nothing is written.
    """
    source = find_recipe(name)
    target = destination if destination.suffix == ".yaml" else destination / source.name
    pairs = [(source, target)]
    pairs += [(source.parent / path, target.parent / path) for path in side_files(source)]
    for _, path in pairs:
        if path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten. Remove it, or name another destination.")
    for origin, path in pairs:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(origin, path) if origin.is_dir() else shutil.copyfile(origin, path)
    return [path for _, path in pairs]


def print_list() -> None:
    """Print the recipes with their first lines, and the names for `--accelerate_config`."""
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", "what it is", box=None, pad_edge=False)
    for name in recipe_names():
        table.add_row(name, summary(find_recipe(name)))
    console = Console()
    console.print(table)
    console.print(f"\n--accelerate_config: {', '.join(accelerate_names())}", highlight=False)
    console.print("Train: opd-trl opd|opsd --config NAME   Read: opd-trl recipes show NAME", highlight=False)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="opd-trl recipes", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names and what they are")
    show = commands.add_parser("show", help="print a recipe")
    show.add_argument("name", help="e.g. system_prompt/demo or accelerate_configs/zero3")
    copy = commands.add_parser("copy", help="copy a recipe and its files, to change it")
    copy.add_argument("name", help="e.g. system_prompt/demo")
    copy.add_argument("destination", nargs="?", default=".", type=Path, help="folder or .yaml file; default: here")
    return parser


def main(argv: list[str]) -> int:
    """Run `opd-trl recipes`."""
    args = make_parser().parse_args(argv)
    try:
        if args.command == "list":
            print_list()
        elif args.command == "show":
            print(find_recipe(args.name).read_text(encoding="utf-8"), end="")
        else:
            for path in copy_recipe(args.name, Path(args.destination)):
                print(f"wrote {path}")
    except (ValueError, FileExistsError) as error:
        print(f"opd-trl recipes: error: {error}", file=sys.stderr)
        return 2
    return 0
