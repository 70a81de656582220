"""Is a checkpoint whole? What a folder holds is written down when it is saved. Standard library alone."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

from .durable import atomically, settle


MANIFEST = "manifest.json"
#: A file of up to BLOCK * BLOCKS bytes (16 MiB) is hashed whole, a larger one in so many blocks evenly spread.
BLOCK, BLOCKS = 2**18, 64
#: How transformers names its checkpoints, and what it writes last into one.
CHECKPOINT, TRAINER_STATE = "checkpoint-", "trainer_state.json"
#: What its checkpoints at SIGTERM hold while they are written.
UNFINISHED = "checkpoint-is-incomplete.txt"
# Endings of what torch writes as a ZIP archive.
ARCHIVES = (".pt", ".pth", ".bin")


def newest_whole(output_dir: str) -> Path | None:
    """The newest checkpoint in a folder that is whole."""
    return next((folder for folder in checkpoints(output_dir) if fault_of(folder) is None), None)


def checkpoints(output_dir: str) -> list[Path]:
    """All checkpoints in a folder, whole or not, the newest first."""
    found = [path for path in Path(output_dir).glob(f"{CHECKPOINT}*") if path.is_dir() and step_of(path) >= 0]
    return sorted(found, key=step_of, reverse=True)


def fault_of(folder: Path) -> str | None:
    """Why a checkpoint cannot be taken for whole, in words; None where nothing is wrong with it."""
    if not (folder / TRAINER_STATE).is_file():
        return f"{TRAINER_STATE} is missing"
    if (folder / UNFINISHED).is_file() and not is_sealed(folder):
        return "it was not saved to its end"
    return damage(folder)


def step_of(folder: Path) -> int:
    """The N of `checkpoint-N`; -1 for any other name."""
    number = folder.name.removeprefix(CHECKPOINT)
    return int(number) if number.isdecimal() else -1


def seal(folder: Path) -> None:
    """Wait until a folder is on the disk, and only then write down which files it holds: sizes and hashes."""
    settle(folder)
    files = {name: {"size": (folder / name).stat().st_size, "sha256": digest(folder / name)} for name in names(folder)}
    with atomically(folder / MANIFEST) as file:
        json.dump({"files": files}, file, indent=1)


def is_sealed(folder: Path) -> bool:
    """Does a folder say what it holds?"""
    return (folder / MANIFEST).is_file()


def damage(folder: Path) -> str | None:
    """What is wrong with a folder, in words; None where nothing is.

    A sealed folder is compared with its manifest. Of any other one each file is looked at by itself: is it empty,
    cut, or zeros?
    """
    try:
        if not is_sealed(folder):
            return next((f"{name} {wrong}" for name in names(folder) if (wrong := spoilt(folder / name))), None)
        for name, saved in json.loads((folder / MANIFEST).read_text("utf-8"))["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != saved["size"]:
                return f"{name} has {size:,} of {saved['size']:,} bytes"
            if digest(path) != saved["sha256"]:
                return f"{name} is not what was saved"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is spoilt"
    except OSError as error:
        return str(error)
    return None


def names(folder: Path) -> list[str]:
    """Every file below a folder but its manifest."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [name for name in files if name != MANIFEST]


def digest(path: Path) -> str:
    """SHA-256 of a file, of a large one in samples: its beginning, its end, and what lies evenly between."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= BLOCK * BLOCKS:
            return hashlib.file_digest(file, "sha256").hexdigest()
        for i in range(BLOCKS):
            file.seek(i * (size - BLOCK) // (BLOCKS - 1))
            found.update(file.read(BLOCK))
    return found.hexdigest()


def spoilt(path: Path) -> str | None:
    """What is wrong with a file by itself; None where nothing can be seen."""
    with path.open("rb") as file:
        head = file.read(BLOCK)
    if not head.strip(b"\0"):
        return "holds nothing but zeros" if head else "is empty"
    if path.suffix == ".json":
        return spoilt_json(path)
    if path.suffix == ".safetensors" and safetensors_size(path) != path.stat().st_size:
        return "is cut, or its header is spoilt"
    if path.suffix in ARCHIVES and head.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "is cut"
    return None


def spoilt_json(path: Path) -> str | None:
    """What is wrong with a JSON file, and with an index of shards that are not all there."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return "is not JSON"
    shards = content.get("weight_map", {}).values() if isinstance(content, dict) else ()
    return next((f"names {name}, which is missing" for name in shards if not (path.parent / name).is_file()), None)


def safetensors_size(path: Path) -> int | None:
    """How long a file of tensors must be by its own header; None where that cannot be read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return None
    return 8 + length + max(ends, default=0)
