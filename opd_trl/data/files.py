"""Rows in files: JSONL and Parquet in, JSONL out; what cannot be read or may not be written is named."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..durable import atomically
from ..foreign import first_too_deep, is_missing, parse_json


Row = dict[str, Any]
#: What `datasets` reads a file type with.
READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
FORMATS = ", ".join(READERS)


class DataError(ValueError):
    """Data is missing, unreadable, empty, lacks a split or a column, or would be overwritten."""


def looks_local(name: str) -> bool:
    """Is `name` meant as a path? A hub id is `owner/name` and ends in no file type.

    >>> looks_local("prompts.jsonl"), looks_local("./data"), looks_local("trl-lib/ultrafeedback-prompt")
    (True, True, False)
    """
    return Path(name).suffix in READERS or name.startswith((".", "/", "~")) or name.count("/") > 1


def read_jsonl(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file, one line at a time; blank lines are passed over.

    Raises:
        DataError: no such file, a line that is not UTF-8, not JSON, or not an object: file and line are named.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> write_jsonl(path, [{"a": 1}, {"a": 2}])
        >>> list(read_jsonl(path))
        [{'a': 1}, {'a': 2}]
    """
    for number, line in _lines(path):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number} is not JSON: {error}. Expected one object per line; repair or remove the line."
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number} holds a {type(row).__name__}, expected one object per line, such as "
                '{"prompt": ...}. A JSON list over several lines is not JSONL.'
            )
        yield without_nan(row)


def without_nan(row: Row) -> Row:
    """The row with None where a column has NaN, which is how tables write what is missing.

    >>> without_nan({"prompt": "1+1?", "answer": float("nan")})
    {'prompt': '1+1?', 'answer': None}
    """
    return {name: None if is_missing(value) else value for name, value in row.items()}


def check_depth(path: Path) -> None:
    """Raise DataError where a `.json` or `.jsonl` file nests deeper than its reader, in C++, survives."""
    if path.suffix not in (".json", ".jsonl"):
        return
    with path.open("rb") as file:
        line = first_too_deep(file)
    if line is not None:
        raise DataError(f"{path}, line {line}: lists and mappings are nested too deep. Repair or remove the row.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist (looked in {Path.cwd()}). Give a .jsonl file.")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number} is not UTF-8 (byte {raw[error.start]:#04x} at column {error.start + 1}). "
                    "Convert the file, e.g. `iconv -f latin1 -t utf-8`."
                ) from error
            if line.strip():
                yield number, line


def check_free(*paths: Path, overwrite: bool) -> None:
    """Raise DataError where one of the files exists and may not be overwritten."""
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        raise DataError(
            f"{', '.join(there)} exists and is not overwritten. Name another place, or allow it with --overwrite."
        )


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL, atomically: another process sees the old file or the whole of what replaces it."""
    with atomically(path) as file:
        file.writelines(f"{to_line(row)}\n" for row in rows)


def unwritable(row: Row) -> str | None:
    """The first column that JSON cannot hold and what it holds, in words; None where there is none.

    >>> unwritable({"prompt": "1+1?", "image": [b"..."]}), unwritable({"prompt": "1+1?"})
    ("column 'image' holds bytes, which JSON cannot", None)
    """
    for name, value in row.items():
        try:
            json.dumps(value)
        except TypeError as error:
            kind = str(error).removeprefix("Object of type ").partition(" is not")[0]
            return f"column {name!r} holds {kind}, which JSON cannot"
    return None


def to_line(row: Row) -> str:
    """A row as one line of JSON, letters outside ASCII as they are."""
    return json.dumps(row, ensure_ascii=False)
