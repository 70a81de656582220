"""Files that survive a kill: written whole or not at all, and lines that are appended. Standard library alone."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


BLOCK = 2**16  # bytes that are read at a time


@contextmanager
def atomically(path: Path) -> Iterator[TextIO]:
    """Open a text file under a temporary name beside `path`; it is renamed where the block ends without an error.

    Whoever reads sees the old file or the whole of the next one, after a power cut as well. What UTF-8 cannot hold
    (a token may be half a character) is written as "?".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def append_lines(path: Path, entries: Iterable[Mapping[str, Any]], *, sync: bool = False) -> None:
    """Append objects as lines of JSON, readable at once.

    Args:
        path: a JSONL file, made where it is missing.
        entries: one object for each line. NaN and infinities are refused.
        sync: wait until they are on the disk.
    """
    text = "".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in entries)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def cut_unfinished_line(path: Path) -> bool:
    """Cut off a last line that a kill left without its end; return whether there was one.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "lines.jsonl"
        >>> _ = path.write_text('{"a": 1}\\n{"a": ')
        >>> cut_unfinished_line(path), path.read_text(), cut_unfinished_line(path)
        (True, '{"a": 1}\\n', False)
    """
    if not path.is_file():
        return False
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:  # from the end, since the file may be long
            start = max(0, end - BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
    return end < size


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
