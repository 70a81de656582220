"""A pipeline's file: its stages, with every reference resolved and every fault found before anything starts."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...data.files import looks_local
from ...data.outputs import files_of
from ...scripts.launching import suggest
from ...scripts.recipe_files import Recipe, find_recipe, read_recipe, recipes_dir
from ...scripts.strict_yaml import parse_yaml
from .commands import Command, find_command


TOP_KEYS = ("stages", "output_dir")
STAGE_KEYS = ("run", "config", "args", "outputs", "needs")
# `{output_dir}` in a value is the pipeline's own folder.
OWN_FOLDER = "output_dir"
NAME = re.compile(r"[A-Za-z_][\w-]*")
REFERENCE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w-]*)(?:\.([\w-]+))?\}")
# Arguments whose value, where such a path exists, is a file or folder that the stage reads.
INPUT_KEYS = (
    *("dataset_name", "model_name_or_path", "teacher_model_name_or_path", "reward_model_name_or_path", "teachers"),
    *("privileged_context_file", "data", "model", "source", "protocol", "accelerate_config"),
)


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline, with every reference resolved.

    Args:
        name: its name in the file.
        command: what it runs.
        recipe: the recipe of `config`, or None.
        args: its arguments, references resolved.
        outputs: the files and folders that it writes.
        inputs: what it may read: paths that its values name, and the outputs of earlier stages that it refers to.
        needs: earlier stages that it refers to, in a value or under `needs`.
        beside: further files that its command may write, such as a report; nothing refers to them.
    """

    name: str
    command: Command
    recipe: Recipe | None
    args: dict[str, Any]
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    needs: tuple[str, ...]
    beside: tuple[str, ...] = ()

    @property
    def flags(self) -> dict[str, Any]:
        """The arguments that become flags: all but tables, lists of mappings, which TRL reads from a file alone."""
        return {key: value for key, value in self.args.items() if not (self.command.training and is_table(value))}

    @property
    def config(self) -> dict[str, Any]:
        """What the stage reads from a file: the keys of the recipe, less those that flags replace, and tables."""
        values = self.recipe.resolved_values() if self.recipe else {}
        return {key: value for key, value in {**values, **self.args}.items() if key not in self.flags}

    @property
    def values(self) -> dict[str, Any]:
        """All that the stage is told, by key: its recipe's values, and over them its arguments."""
        return {**self.config, **self.args}


@dataclass(frozen=True)
class Pipeline:
    """The stages of a file, in their order, and the folder of the record and the logs."""

    path: Path
    folder: Path
    stages: tuple[Stage, ...]

    def index(self, name: str, *, option: str) -> int:
        """The place of a stage that a flag names."""
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise ValueError(f"{option} {name}: {self.path} has no such stage. It has {', '.join(names)}.")
        return names.index(name)


def read_pipeline(name: str, settings: list[str]) -> Pipeline:
    """Read a pipeline by its path, or by its name as in `opd-trl recipes list`.

    `settings`, `STAGE.KEY=VALUE` or `output_dir=PATH` with values as YAML, win over the file. Raises ValueError, which
    names file and stage, for an unknown key, command, stage or reference, or a missing file.
    """
    recipe = read_recipe(find_recipe(name))
    content = dict(recipe.values)
    refuse_unknown(content, TOP_KEYS, str(recipe.path))
    stages = content.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise ValueError(f"{recipe.path} has no stages: a mapping of names to `run`, `args` and `outputs`.")
    stages = {key: check_stage(key, stage, recipe.path) for key, stage in stages.items()}
    content |= apply_settings(stages, settings)
    folder = content.get(OWN_FOLDER, f"runs/{recipe.path.stem}")
    if not isinstance(folder, str) or not folder:
        raise ValueError(f"{OWN_FOLDER} in {recipe.path} must be a folder, got {folder!r}.")
    done: dict[str, Stage] = {}
    for key, stage in stages.items():
        try:
            done[key] = build_stage(key, stage, Path(folder), done, list(stages), recipe.origins["stages"].parent)
        except ValueError as error:
            raise ValueError(f"stage {key} of {recipe.path}: {error}") from None
    pipeline = Pipeline(recipe.path, Path(folder), tuple(done.values()))
    check_outputs(pipeline)
    return pipeline


def check_stage(name: str, stage: Any, path: Path) -> dict[str, Any]:
    """Refuse what does not describe a stage; return a copy of it."""
    where = f"stage {name} of {path}"
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == OWN_FOLDER:
        raise ValueError(
            f"{where}: a name is letters, digits, _ and -, begins with a letter, and is not {OWN_FOLDER}."
        )
    if not isinstance(stage, dict) or not isinstance(stage.get("run"), str):
        raise ValueError(f"{where} must be a mapping with `run`, such as `run: trl sft`; got {stage!r}.")
    refuse_unknown(stage, STAGE_KEYS, where)
    stage = {"args": {}, "outputs": [], "needs": [], "config": None, **stage}
    if not isinstance(stage["args"], dict) or not all(isinstance(key, str) for key in stage["args"]):
        raise ValueError(f"{where}: args must map names to values, got {stage['args']!r}.")
    for key in ("outputs", "needs"):
        stage[key] = [stage[key]] if isinstance(stage[key], str) else stage[key]
        if not isinstance(stage[key], list) or not all(isinstance(entry, str) for entry in stage[key]):
            raise ValueError(f"{where}: {key} must be a list of texts, got {stage[key]!r}.")
    if stage["config"] is not None and not isinstance(stage["config"], str):
        raise ValueError(f"{where}: config must be a recipe's name or path, got {stage['config']!r}.")
    return {**stage, "args": dict(stage["args"])}


def refuse_unknown(content: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    """Name the nearest right key for each unknown one."""
    unknown = [key for key in content if key not in known]
    if unknown:
        lines = "; ".join(suggest(str(key), list(known)) for key in unknown)
        raise ValueError(f"unknown key in {where}. {lines} The keys here are {', '.join(known)}.")


def apply_settings(stages: dict[str, dict[str, Any]], settings: list[str]) -> dict[str, Any]:
    """Put `--set` into the stages; return what it sets for the pipeline itself."""
    own = {}
    for setting in settings:
        target, given, text = setting.partition("=")
        stage, dot, key = target.partition(".")
        if not given or not (target == OWN_FOLDER or (dot and key and stage in stages)):
            raise ValueError(
                f"--set {setting}: expected STAGE.KEY=VALUE or {OWN_FOLDER}=PATH. The stages are {', '.join(stages)}."
            )
        value = parse_yaml(text, f"--set {setting}")
        if target == OWN_FOLDER:
            own[OWN_FOLDER] = text
        else:
            stages[stage]["args"][key] = value
    return own


def build_stage(
    name: str, stage: dict[str, Any], folder: Path, done: dict[str, Stage], names: list[str], beside: Path
) -> Stage:
    """A stage whose references to the stages before it, `done`, are resolved."""
    command = find_command(stage["run"], Path())
    needs = [earlier(need, done, names, f"needs {need}") for need in stage["needs"]]
    recipe = None
    if stage["config"] is not None:
        if not command.training:
            raise ValueError(f"`{command.name}` takes no config. Give its arguments under args.")
        recipe = read_recipe(find_recipe(stage["config"], beside if (beside / stage["config"]).is_file() else None))
    defaults = {command.output_key: f"{{{OWN_FOLDER}}}/{name}"} if command.output_key else {}
    given = {**defaults, **stage["args"]}
    args = {key: resolve(value, done, names, folder, needs) for key, value in given.items()}
    built = Stage(name, command, recipe, args, (), (), ())
    declared = [resolve(output, done, names, folder, needs) for output in stage["outputs"]]
    written = [args[key] for key in ("output_dir", "output") if isinstance(args.get(key), str)]
    outputs = tuple(dict.fromkeys(map(str, declared or written)))
    needed = [output for need in needs for output in done[need].outputs]
    inputs = dict.fromkeys([*command.files, *inputs_of(built, done, outputs), *needed])
    links = {"inputs": tuple(inputs), "needs": tuple(dict.fromkeys(needs))}
    return replace(built, outputs=outputs, beside=written_beside(command, args, outputs), **links)


def written_beside(command: Command, args: dict[str, Any], outputs: tuple[str, ...]) -> tuple[str, ...]:
    """What a command may write apart from its declared outputs: of `opd-trl data` parts, report, unfinished rows."""
    output, parts = args.get("output"), args.get("parts")
    if not command.writes_rows or not isinstance(output, str):
        return ()
    may_write = files_of(Path(output), ",".join(map(str, parts)) if isinstance(parts, list) else parts)
    return tuple(path for path in map(str, may_write) if path not in outputs)


def resolve(value: Any, done: dict[str, Stage], names: list[str], folder: Path, needs: list[str]) -> Any:
    """Put what earlier stages wrote in place of `{STAGE}` and `{STAGE.KEY}`; stages referred to are added to `needs`.

    A value that is a reference and nothing else keeps the type of what it refers to. `{{` and `}}` are plain braces.
    """
    if isinstance(value, dict):
        return {key: resolve(entry, done, names, folder, needs) for key, entry in value.items()}
    if isinstance(value, list):
        return [resolve(entry, done, names, folder, needs) for entry in value]
    if not isinstance(value, str):
        return value

    def meaning(match: re.Match) -> Any:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        name, key = match[1], match[2]
        if name == OWN_FOLDER and key is None:
            return str(folder)
        stage = done[earlier(name, done, names, f"{match[0]} in {value!r}")]
        needs.append(name)
        if key is None:
            if not stage.outputs:
                raise ValueError(f"{match[0]} in {value!r}: stage {name} has no outputs. List them under `outputs`.")
            return stage.outputs[0]
        if key not in stage.values:
            known = ", ".join(stage.values) or "none"
            raise ValueError(f"{match[0]} in {value!r}: stage {name} sets no {key}. It sets {known}.")
        return stage.values[key]

    whole = REFERENCE.fullmatch(value)
    return meaning(whole) if whole else REFERENCE.sub(lambda match: str(meaning(match)), value)


def earlier(name: str, done: dict[str, Stage], names: list[str], what: str) -> str:
    """Return `name` if it is a stage before this one."""
    if name in done:
        return name
    if name in names:
        raise ValueError(f"{what}: stage {name} comes later or is this one. Move it up.")
    raise ValueError(
        f"{what}: there is no stage {name}. The stages before this one are {', '.join(done) or 'none'}. Double the "
        "braces where they are meant as they stand."
    )


def inputs_of(stage: Stage, done: dict[str, Stage], outputs: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths that a stage's values name and that it reads; ValueError: one is not there and not to come."""
    coming = [Path(output).absolute() for other in done.values() for output in other.outputs]
    own = [Path(output).absolute() for output in outputs]
    for key, value in stage.values.items():
        for text in texts(value):
            path = Path(text).expanduser()
            there = os.path.exists(path)  # where pathlib raises for a text that is too long for a path, this is False
            if any(path.absolute().is_relative_to(output) for output in own):
                continue
            if key == "protocol" and (packaged := recipes_dir() / "protocols" / f"{text}.yaml").is_file():
                yield str(packaged)
            elif any(path.absolute().is_relative_to(output) for output in coming):
                yield text
            elif key in INPUT_KEYS and looks_local(text) and "://" not in text and not there:
                raise ValueError(
                    f"{key}: {text} does not exist (looked in {Path.cwd()}), and no earlier stage writes it."
                )
            elif (key in INPUT_KEYS or looks_local(text)) and there:
                yield text


def is_table(value: Any) -> bool:
    """Is a value a list of mappings, such as `datasets`?"""
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a value, in its lists and mappings too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from texts(entry)


def check_outputs(pipeline: Pipeline) -> None:
    """Refuse outputs that hold one another, the record or the working directory: they are moved as a whole."""
    taken = [("the pipeline's own folder", pipeline.folder.absolute()), ("the working directory", Path.cwd())]
    for stage in pipeline.stages:
        paths = [Path(output).absolute() for output in stage.outputs]
        for path in paths:
            for owner, other in taken:
                if other.is_relative_to(path) or (owner.startswith("stage") and path.is_relative_to(other)):
                    raise ValueError(
                        f"stage {stage.name} of {pipeline.path}: its output {path} holds or lies in {owner} "
                        f"({other}). Give it a place of its own, such as '{{output_dir}}/{stage.name}'."
                    )
        taken += [(f"stage {stage.name}", path) for path in paths]
