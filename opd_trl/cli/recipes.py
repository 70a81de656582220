"""Recipes: YAML files found by name or path, read with what they extend, and `opd-trl recipes list|show|copy`."""

import argparse
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from rich.table import Table

from ..durable import apart, atomically
from ..scripts.code_of_others import code_in, code_of_stages, name_code
from ..scripts.consoles import plain_console
from ..scripts.recipe_files import (
    EXTENDS,
    FILE_KEYS,
    Recipe,
    accelerate_names,
    find_recipe,
    load_mapping,
    pipeline_names,
    read_recipe,
    recipe_names,
)
from .terminal import refused


def make_parser() -> argparse.ArgumentParser:
    """The parser of `opd-trl recipes`."""
    parser = argparse.ArgumentParser(prog="opd-trl recipes", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names and what they are")
    show = commands.add_parser("show", help="print a recipe")
    show.add_argument("name", help="e.g. system_prompt/demo or accelerate_configs/zero3")
    show.add_argument("--resolved", action="store_true", help="all keys, those of the files that it extends included")
    copy = commands.add_parser("copy", help="copy a recipe, what it extends and their files, to change it")
    copy.add_argument("name", help="e.g. system_prompt/demo")
    copy.add_argument("destination", nargs="?", default=".", type=Path, help="folder or .yaml file; default: here")
    return parser


def main(argv: list[str]) -> int:
    """Run `opd-trl recipes` and return its exit status."""
    args = make_parser().parse_args(argv)
    actions: dict[str, Callable[[], None]] = {
        "list": print_list,
        "show": lambda: print_recipe(args.name, resolved=args.resolved),
        "copy": lambda: print(*(f"wrote {path}" for path in copy_recipe(args.name, args.destination)), sep="\n"),
    }
    try:
        actions[args.command]()
    except (ValueError, FileExistsError) as error:
        return refused("opd-trl recipes", error)
    return 0


def print_list() -> None:
    """Print the recipes and pipelines with their first lines, and the names for `--accelerate_config`."""
    console = plain_console()
    for title, names in (("recipe", recipe_names()), ("pipeline", pipeline_names())):
        table = Table(title, "what it is", box=None, pad_edge=False)
        for name in names:
            table.add_row(name, summary(find_recipe(name)))
        if names:
            console.print(table)
            console.print()
    console.print(f"--accelerate_config: {', '.join(accelerate_names())}")
    console.print(
        "Train: opd-trl opd|opsd --config NAME   Pipelines: opd-trl pipeline --config NAME   "
        "Read: opd-trl recipes show NAME",
    )


def summary(recipe: Path) -> str:
    """Return the first comment line of a recipe: what it is."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")


def print_recipe(name: str, *, resolved: bool) -> None:
    """Print a recipe as it is written, or with all that it extends."""
    path = find_recipe(name)
    recipe = read_recipe(path)
    stages = recipe.values.get("stages")
    told = stages.items() if isinstance(stages, dict) else ()
    told = {key: (str(x.get("run")), x.get("args") or {}) for key, x in told if isinstance(x, dict)}
    name_code(code_of_stages(told) or code_in(recipe.resolved_values()), prog="opd-trl recipes", refuse=False)
    print(resolved_text(recipe) if resolved else path.read_text(encoding="utf-8"), end="")


def resolved_text(recipe: Recipe) -> str:
    """Return a recipe as one YAML text; a comment before each run of keys names the file that they are from."""
    text, origin = "", None
    for key, value in recipe.resolved_values().items():
        if recipe.origins[key] != origin:
            origin = recipe.origins[key]
            text += f"# {os.path.relpath(origin, recipe.path.parent)}\n"
        text += yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=110)
    return text


def copy_recipe(name: str, destination: Path) -> list[Path]:
    """Copy a recipe, what it extends, and the files that these name; return what was written.

    Args:
        name: as in `find_recipe`.
        destination: a `.yaml` file, or a folder, created if needed. What lies beside the recipe keeps its place there;
            a file extended from elsewhere goes into a folder of the same name as its own, and `extends` follows it.

    Raises:
        ValueError: no such recipe, or two files would get the same name.
        FileExistsError: something is there already; nothing is written.
    """
    source = find_recipe(name)
    target = destination if destination.suffix == ".yaml" else destination / source.name
    targets = {source.resolve(): target}
    for path in linked_files(source):
        targets.setdefault(path.resolve(), target.parent / place_of_copy(path.resolve(), source.resolve().parent))
    sides = {
        (origin.parent / path).resolve(): copy.parent / path
        for origin, copy in targets.items()
        for path in side_files(origin)
    }
    pairs = {**sides, **targets}
    written = list(pairs.values())
    taken = next((path for path in written if written.count(path) > 1), None)
    if taken is not None:
        raise ValueError(f"two files of {name} would be copied to {taken}. Copy them by hand.")
    for path in written:
        if path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten. Remove it, or name another destination.")
    texts = {copy: relinked(origin, targets) for origin, copy in targets.items()}
    for origin, path in pairs.items():
        if path in texts:
            with atomically(path) as file:
                file.write(texts[path])
        else:
            with apart(path) as part:
                shutil.copytree(origin, part) if origin.is_dir() else shutil.copyfile(origin, part)
    return sorted(written, key=lambda path: path != target)


def place_of_copy(path: Path, folder: Path) -> Path:
    """Where the copy of a file lies, seen from the folder of the copied recipe.

    >>> place_of_copy(Path("/recipes/smoke/base.yaml"), Path("/recipes/smoke"))
    PosixPath('base.yaml')
    >>> place_of_copy(Path("/recipes/math/opd.yaml"), Path("/recipes/smoke"))
    PosixPath('math/opd.yaml')
    """
    return path.relative_to(folder) if path.is_relative_to(folder) else Path(path.parent.name, path.name)


def side_files(recipe: Path) -> list[Path]:
    """Return the files and folders beside a recipe that it names, relative to its folder."""
    content = load_mapping(recipe)
    named = [Path(content[key]) for key in FILE_KEYS if isinstance(content.get(key), str)]
    return [path for path in named if not path.is_absolute() and (recipe.parent / path).exists()]


def linked_files(recipe: Path) -> list[Path]:
    """Return every file that a recipe extends, and for a pipeline every recipe of its stages with what it extends."""
    found = list(read_recipe(recipe).bases)
    for path in (recipe, *found):
        for node in links(path.read_text(encoding="utf-8")):
            linked = find_recipe(node.value, path.parent)
            found += [path for path in (linked, *read_recipe(linked).bases) if path not in found]
    return found


def links(text: str) -> Iterator[yaml.ScalarNode]:
    """Yield the places in a recipe that name another: entries of `extends`, and `config` of a pipeline's stages."""
    top = members(yaml.compose(text, Loader=yaml.SafeLoader))
    extends = top.get(EXTENDS)
    yield from extends.value if isinstance(extends, yaml.SequenceNode) else [extends] if extends else []
    for stage in members(top.get("stages")).values():
        if config := members(stage).get("config"):
            yield config


def members(node: yaml.Node | None) -> dict[str, yaml.Node]:
    """The nodes of a mapping by their keys."""
    return {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}


def relinked(path: Path, targets: dict[Path, Path]) -> str:
    """Return the text of a recipe in which the names of others point to their copies; the rest stays as written."""
    text = path.read_text(encoding="utf-8")
    for node in reversed(list(links(text))):
        copy = targets[find_recipe(node.value, path.parent).resolve()]
        name = os.path.relpath(copy, targets[path].parent)
        if (path.parent / node.value).resolve() != (path.parent / name).resolve():
            text = text[: node.start_mark.index] + name + text[node.end_mark.index :]
    return text
