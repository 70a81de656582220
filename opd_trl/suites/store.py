"""Samples on disk: appended as they come, repaired after a kill, never mixed with those of another evaluation."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..data.files import atomically
from .protocol import differences


Sample = dict[str, Any]
Key = tuple[str, str, int, int]


class Store:
    """The folder of one evaluation: `run.json` says of what, `samples.jsonl` holds the samples.

    Args:
        folder: made where it is missing.
        identity: what the samples depend on.

    Raises:
        ValueError: the folder holds another evaluation (what differs is said), is no folder, or cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.path = folder, folder / "samples.jsonl"
        run = folder / "run.json"
        if run.is_file():
            changed = differences(read_json(run), identity)
            if changed:
                raise ValueError(
                    f"{folder} holds another evaluation: {'; '.join(changed)}. Give another --output, or remove it."
                )
        elif self.path.exists():
            raise ValueError(f"{folder} has samples.jsonl but no run.json that says of what. Give another --output.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomically(run) as file:
                json.dump(identity, file, indent=2)
        except OSError as error:
            raise ValueError(f"--output {folder} cannot be written: {error}. Give a folder that can.") from None
        self.repaired = repair(self.path)
        self.samples = {key(sample): sample for sample in read_samples(self.path)}

    def append(self, samples: Iterable[Sample]) -> None:
        """Write samples down, those that are there already left out; on the disk when this returns."""
        missing = {key(sample): sample for sample in samples if key(sample) not in self.samples}
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in missing.values()))
            file.flush()
            os.fsync(file.fileno())
        self.samples |= missing


def key(sample: Sample) -> Key:
    """What a sample is of: part, problem, seed, number."""
    return sample["part"], sample["problem"], sample["seed"], sample["sample"]


def repair(path: Path) -> bool:
    """Cut a last line that a kill left unfinished; was there one?"""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return False
    with path.open("r+b") as file:
        file.truncate(end)
    return True


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file; none where there is none.

    Raises:
        ValueError: a line is broken; it is named.
    """
    samples = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        try:
            sample = json.loads(line)
            key(sample)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is no sample ({error}). Remove the line; it is drawn again."
            ) from None
        samples.append(sample)
    return samples


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. Remove the folder, or give another.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object. Remove the folder, or give another.")
    return content
