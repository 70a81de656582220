"""Data sets for the training scripts: hub id, local file or folder, or TRL's mixture; every fault is a clear error."""

from pathlib import Path
from typing import Any

from datasets import load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from trl import get_dataset

from ..data.files import FORMATS, READERS, DataError, check_depth, looks_local


def check_data_arguments(script_args, dataset_args) -> None:
    """Raise DataError where no data set is given, or one that looks local does not exist; no data is read."""
    name = script_args.dataset_name
    if dataset_args.datasets:
        if name:
            raise DataError("dataset_name and datasets are both given. Give one of them.")
        return
    if not name:
        raise DataError(
            "no data set is given. Set dataset_name to a hub id, a file "
            f"({FORMATS}) or a folder with train.* and test.* files, or give a `datasets` mixture."
        )
    if looks_local(name) and not Path(name).expanduser().exists():
        raise DataError(
            f"dataset_name={name!r} does not exist (looked in {Path.cwd()}). Give a file ({FORMATS}), a folder or a "
            "hub id such as trl-lib/ultrafeedback-prompt. A recipe's header says how to make its file."
        )


def load_splits(script_args, dataset_args, *, evaluate: bool) -> tuple[Any, Any | None]:
    """The training set, and the evaluation set where `evaluate`, else None; raises DataError where one is missing.

    `script_args` has the fields of [`~trl.ScriptArguments`], `dataset_args` is a [`~trl.DatasetMixtureConfig`].
    """
    check_data_arguments(script_args, dataset_args)
    name = script_args.dataset_name or "the mixture `datasets`"
    splits = _load(script_args, dataset_args)
    train = _split(splits, script_args.dataset_train_split, name, option="dataset_train_split")
    if not evaluate:
        return train, None
    return train, _split(splits, script_args.dataset_test_split, name, option="dataset_test_split")


def _load(script_args, dataset_args):
    try:
        if dataset_args.datasets:
            return get_dataset(dataset_args)
        path = Path(script_args.dataset_name).expanduser()
        if path.exists():
            return _load_local(path, script_args)
        return load_dataset(
            script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
        )
    except DataError:
        raise
    except (DatasetsError, OSError, ValueError) as error:
        given = script_args.dataset_name or [entry.path for entry in dataset_args.datasets]
        raise DataError(
            f"the data set {given!r} could not be loaded: {str(error).rstrip('.')}. Expected a file ({FORMATS}) with "
            "at least one row, a folder of such files, or a hub id (with dataset_config where it has several) that "
            "this machine can reach."
        ) from error


def _load_local(path: Path, script_args):
    if path.is_file():
        files = {script_args.dataset_train_split: [path]}
    elif (path / "dataset_dict.json").is_file():
        return load_from_disk(str(path))
    else:
        wanted = (script_args.dataset_train_split, script_args.dataset_test_split)
        files = {split: found for split in wanted if (found := files_of_split(path, split))}
    suffixes = {file.suffix for found in files.values() for file in found}
    if len(suffixes) != 1 or not suffixes <= READERS.keys():
        there = ", ".join(sorted(file.name for file in path.iterdir())) if path.is_dir() else path.name
        raise DataError(
            f"cannot read {path}: expected a file, or a folder with files named after the splits "
            f"({script_args.dataset_train_split}.jsonl, ...), of one type of {FORMATS}. Found: {there or 'nothing'}."
        )
    for file in (file for found in files.values() for file in found):
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty. Put one example into each line or row.")
        check_depth(file)
    data_files = {split: [str(file) for file in found] for split, found in files.items()}
    return load_dataset(READERS[suffixes.pop()], data_files=data_files, streaming=script_args.dataset_streaming)


def files_of_split(folder: Path, split: str) -> list[Path]:
    """Return the files of a split: `train.jsonl`, or shards such as `train-00000-of-00002.parquet`."""
    files = (file for file in folder.iterdir() if file.suffix in READERS)
    return sorted(file for file in files if file.stem == split or file.stem.startswith(f"{split}-"))


def _split(splits, split: str, name: str, *, option: str):
    if split not in splits:
        raise DataError(
            f"{name} has no split {split!r}, it has {', '.join(map(repr, splits))}. Name one with {option}"
            + (", or set eval_strategy to 'no'." if option == "dataset_test_split" else ".")
        )
    data = splits[split]
    if hasattr(data, "__len__") and len(data) == 0:
        raise DataError(f"split {split!r} of {name} is empty. Give at least one example.")
    return data
