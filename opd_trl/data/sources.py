"""Rows of a data set by name or of a file, through `datasets`; what cannot be had is an error with the remedy."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..spelling import did_you_mean
from .adapters import ADAPTERS, Adapter
from .files import FORMATS, READERS, DataError, Row, check_depth, read_jsonl, without_nan


def load_named(
    name: str,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    path: str | None = None,
) -> Iterable[Row]:
    """The rows of a known data set, as the hub has them.

    Args:
        name: one of `ADAPTERS`.
        split, config: in place of the adapter's.
        revision: branch, tag or commit of the hub's repository; without it the newest, which may change.
        path: a local copy: a folder in the layout of the hub's repository, or one file of it.

    Raises:
        DataError: an unknown name, split, configuration or revision; a column is missing; gated without a token; the
            hub cannot be reached.
    """
    adapter = adapter_of(name)
    split = split or adapter.split
    if path is not None and Path(path).is_file():
        rows = read_file(Path(path))
    else:
        rows = _load(adapter, path or adapter.hub_id, split=split, config=config or adapter.config, revision=revision)
    remedy = "The adapter reads another layout: check --config and --path, or use the files with --columns."
    return with_columns(rows, adapter.columns, source=path or adapter.hub_id, remedy=remedy)


def adapter_of(name: str) -> Adapter:
    """The adapter called `name`; raises DataError with the names that there are."""
    if name not in ADAPTERS:
        hint = did_you_mean(name, ADAPTERS, otherwise="nothing is spelt like it.")
        raise DataError(f"{name!r} is neither a known data set nor a file: {hint} There are {', '.join(ADAPTERS)}.")
    return ADAPTERS[name]


def _load(adapter: Adapter, place: str, *, split: str, config: str | None, revision: str | None) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return load_dataset(place, config, split=split, revision=revision)
    except (DatasetsError, HfHubHTTPError, OSError, ValueError) as error:
        raise DataError(explain(error, adapter, place, split=split, config=config)) from error


def explain(error: Exception, adapter: Adapter, place: str, *, split: str, config: str | None) -> str:
    """What went wrong when a data set was asked for, and what to do about it."""
    text = " ".join(str(error).split()).rstrip(".")
    copy = f"or give a copy made elsewhere: --path FOLDER (`hf download --repo-type dataset {adapter.hub_id}`)"
    if "gated" in text or "401" in text or "403" in text:
        return (
            f"{place} is gated and this machine may not read it ({text}). Accept its conditions at "
            f"https://huggingface.co/datasets/{adapter.hub_id}, then `hf auth login` or set HF_TOKEN, {copy}."
        )
    if isinstance(error, ConnectionError) or "Couldn't reach" in text or "offline" in text.lower():
        token = " It is gated, too: a token is needed (HF_TOKEN)." if adapter.gated else ""
        return (
            f"the hub cannot be reached for {place} ({text}). Check the network and HF_HUB_OFFLINE, {copy}, or use "
            f"`opd-trl data procedural` or `opd-trl toy`, which need no network.{token}"
        )
    if "nknown split" in text:
        return f"{place} has no split {split!r} ({text}). Name one that it has with --split."
    if "BuilderConfig" in text or "config" in text.lower():
        return f"{place} has no configuration {config!r} ({text}). Name one that it has with --config."
    return f"{place} could not be loaded ({text}). Check name, --revision and --path, {copy}."


def read_file(path: Path) -> Iterable[Row]:
    """The rows of a `.jsonl`, `.parquet`, `.csv` or `.json` file; raises DataError where it has or gives none."""
    if not path.is_file():
        raise DataError(f"{path} does not exist (looked in {Path.cwd()}). Give a file ({FORMATS}).")
    if path.suffix not in READERS:
        raise DataError(f"cannot read {path}: expected one of {FORMATS}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty. Put one example into each line or row.")
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    check_depth(path)
    try:
        return Rows(load_dataset(READERS[path.suffix], data_files=str(path), split="train"))
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {' '.join(str(error).split())}.") from error


class Rows:
    """The rows of a data set as often as they are asked for, what is missing as None, in tables of numbers too."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Row]:
        return map(without_nan, self.dataset)


def with_columns(rows: Iterable[Row], columns: Iterable[str], *, source: str, remedy: str) -> Iterator[Row]:
    """Yield the rows; raises DataError, which ends with `remedy`, for the first one that lacks one of the columns."""
    wanted = tuple(columns)
    for number, row in enumerate(rows, start=1):
        missing = [column for column in wanted if column not in row]
        if missing:
            raise DataError(
                f"{source}, row {number} has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(map(repr, row)) or 'none'}. {remedy}"
            )
        yield without_nan(row)
