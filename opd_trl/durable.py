"""Files that survive a kill: written whole or not at all, and lines that are appended. Standard library alone."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


BLOCK = 2**16  # bytes that are read at a time
WRITING = ".writing."  # how the folders begin in which something is written
# What a disk refuses, and what to do.
FREE, ELSEWHERE = "Free some, or give another folder.", "Give a file or folder that this user can read and write."
PLACE = "Give another path, or move away what is there."
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), FREE),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), ELSEWHERE),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP), PLACE),
    errno.ENOENT: "Give one that exists.",
    errno.ENAMETOOLONG: "Give a shorter path.",
    errno.EFBIG: "Give a file system that takes larger files, or raise `ulimit -f`.",
    errno.EIO: "Look at the disk (`dmesg`), or give another folder.",
}
# How safetensors reports what the disk refused, and torch a file that it could not write to its end.
OF_RUST, OF_TORCH = re.compile(r"\(os error (\d+)\)"), re.compile(r"unexpected pos \d+ vs \d+")
# Of file systems that cannot be asked to write a folder down.
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def atomically(path: Path) -> Iterator[TextIO]:
    """Open a text file that takes the place of `path` where the block ends without an error; see `apart`.

    What UTF-8 cannot hold (a token may be half a character) is written as "?".
    """
    with apart(path) as part, part.open("w", encoding="utf-8", errors="replace") as file:
        yield file


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with atomically(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


@contextmanager
def apart(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to; it takes the place of `path` where the block ends well.

    Whoever reads sees the old file or the whole of the next one, after a power cut as well. A device or a pipe is
    written to as it is.
    """
    with naming(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix=WRITING, dir=path.parent))
        try:
            yield home / path.name
            settle(home)
            os.replace(home / path.name, path)
            settle_entry(path.parent)
        finally:
            shutil.rmtree(home, ignore_errors=True)


def settle(folder: Path) -> None:
    """Wait until a folder and all that lies in it are on the disk."""
    for path in (folder, *folder.rglob("*")):
        if path.is_file() or path.is_dir():
            settle_entry(path)


def take_place(part: Path, folder: Path) -> None:
    """Let a whole folder take the place of another; the folder in which it was written is removed."""
    if folder.exists():
        folder.rename(part.with_name("replaced"))
    part.rename(folder)
    settle_entry(folder.parent)
    shutil.rmtree(part.parent, ignore_errors=True)


def take_places(part: Path, folder: Path) -> None:
    """Let every file below `part` take its place below `folder`, once all are on the disk."""
    settle(part)
    for path in filter(Path.is_file, part.rglob("*")):
        place = folder / path.relative_to(part)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    settle_entry(folder)
    shutil.rmtree(part)


def settle_entry(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(handle)


def append_lines(path: Path, entries: Iterable[Mapping[str, Any]], *, sync: bool = False) -> None:
    """Append objects as lines of JSON, readable at once.

    Args:
        path: a JSONL file, made where it is missing.
        entries: one object for each line. NaN and infinities are refused.
        sync: wait until they are on the disk.
    """
    text = "".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in entries)
    with naming(path), path.open("a", encoding="utf-8") as file:
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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the disk name the file that is written: a full disk names none, nor do torch and safetensors."""
    try:
        yield
    except Exception as error:
        found = disk_error(error)
        if found is None:
            raise
        if found.filename is None or WRITING in str(found.filename):
            found.filename, found.filename2 = str(path), None
        raise found from (None if found is error else error)


def disk_error(error: BaseException | None) -> OSError | None:
    """The error of the disk that is behind another one; None where it is something else."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REMEDIES:
            return error
        if (found := OF_RUST.search(str(error))) and int(found[1]) in REMEDIES:
            return OSError(int(found[1]), os.strerror(int(found[1])))
        if OF_TORCH.search(str(error)):
            return OSError(errno.ENOSPC, "cannot be written to its end")
        error = error.__cause__
    return None


def in_a_line(error: BaseException) -> str | None:
    """What the disk refuses, of which file, and what to do; None where an error is not the disk's.

    Example:
        >>> in_a_line(OSError(errno.ENOSPC, "No space left on device", "runs/out/model.safetensors"))
        'runs/out/model.safetensors: no space left on device. Free some, or give another folder.'
        >>> in_a_line(ValueError("no")) is None
        True
    """
    found = disk_error(error)
    if found is None:
        return None
    reason = found.strerror[:1].lower() + found.strerror[1:]
    return f"{found.filename or 'a file'}: {reason}. {REMEDIES[found.errno]}"
