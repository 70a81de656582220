"""The record of a pipeline: what each stage ran, read and wrote, with hashes; `pipeline.json`."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ...durable import atomically
from ...foreign import parse_json
from ...locks import IN_FOLDER


RECORD = "pipeline.json"
# Checkpoints are there to go on from: they may be removed when a stage is done, and are large.
CHECKPOINTS = "checkpoint-"

Digest = dict[str, Any]


class Hasher:
    """SHA-256 of files and folders; a file is read once in a run unless its size or time has changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def digest(self, path: Path) -> Digest | None:
        """Return the hash of a file, or those of a folder file by file; None where there is neither.

        Hidden files, `checkpoint-*` folders and locks of a folder are left out.
        """
        if path.is_file():
            return {"sha256": self._file(path), "bytes": path.stat().st_size}
        if not path.is_dir():
            return None
        files = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
        kept = {name: file for name, file in files.items() if not left_out(name)}
        hashes = {name: self._file(file) for name, file in kept.items()}
        return {
            "sha256": sha256(hashes),
            "bytes": sum(file.stat().st_size for file in kept.values()),
            "files": hashes,
        }

    def _file(self, path: Path) -> str:
        state = path.stat()
        key = (str(path.absolute()), state.st_size, state.st_mtime_ns)
        if key not in self._known:
            with path.open("rb") as file:
                self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[key]


def left_out(name: str) -> bool:
    """Is a file left out when its folder is hashed?

    >>> left_out("checkpoint-20/model.safetensors"), left_out(".cache/x"), left_out("model.safetensors")
    (True, True, False)
    """
    parts = Path(name).parts
    return parts[0].startswith(CHECKPOINTS) or parts[-1] == IN_FOLDER or any(part.startswith(".") for part in parts)


def sha256(content: Any) -> str:
    """The hash of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def difference(before: Digest | None, now: Digest | None) -> str | None:
    """Say how a file or folder differs from what was recorded; None if it does not.

    >>> difference({"sha256": "1", "files": {"a": "2", "b": "3"}}, {"sha256": "4", "files": {"a": "5", "c": "6"}})
    'changed: a; gone: b; added: c'
    """
    if before == now:
        return None
    if before is None or now is None:
        return "is missing" if now is None else "was not there"
    if "files" not in before or "files" not in now:
        return "changed"
    old, new = before["files"], now["files"]
    groups = {
        "changed": [name for name in old if name in new and old[name] != new[name]],
        "gone": [name for name in old if name not in new],
        "added": [name for name in new if name not in old],
    }
    return "; ".join(
        f"{what}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for what, names in groups.items() if names
    )


def read_record(folder: Path) -> dict[str, Any]:
    """What is recorded of each stage, by its name; empty without a file, ValueError where that is not a record."""
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        stages = parse_json(path.read_bytes())["stages"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a record of a pipeline ({error!r}). Move it away to start anew; what the stages wrote "
            "must then be moved as well."
        ) from None
    return stages


def write_record(folder: Path, pipeline: Path, stages: dict[str, Any]) -> None:
    """Write the record: whole, or not at all."""
    with atomically(folder / RECORD) as file:
        json.dump({"pipeline": str(pipeline), "stages": stages}, file, indent=2, default=str)
        file.write("\n")
