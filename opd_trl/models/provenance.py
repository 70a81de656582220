"""Where a result comes from: model, versions, commit, machine, date."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import opd_trl

from ..credentials import without_secrets


#: Packages that decide about the numbers of a training run, and those of an evaluation.
TRAINING = ("trl", "transformers", "torch", "peft", "accelerate", "datasets", "vllm", "deepspeed")
EVALUATION = ("torch", "transformers", "trl", "peft", "vllm", "math-verify", "if-verifiable", "langdetect", "numpy")
WEIGHTS = (".safetensors", ".bin", ".gguf")
# Bytes of a weight file's start and end that are hashed; the whole of a large model would take minutes.
PROBE = 2**20


def fingerprint(folder: Path) -> str:
    """A digest of a model's or adapter's folder: names and sizes of all files, small ones whole, ends of weight files.

    It tells one checkpoint from another. It does not protect against somebody who forges one.
    """
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.suffix not in (".json", ".jinja", *WEIGHTS):
            continue
        total.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            total.update(file.read(PROBE))
            if path.stat().st_size > PROBE:
                file.seek(max(PROBE, path.stat().st_size - PROBE))
                total.update(file.read(PROBE))
    return total.hexdigest()[:12]


def check_model(model: str, *, option: str, needs: str) -> None:
    """Raise ValueError where a path is meant that is not there, or is not a model."""
    path = Path(model).expanduser()
    local = path.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1 or path.parent.is_dir()
    if local and not path.is_dir():
        raise ValueError(
            f"{option} {model!r} does not exist (looked in {Path.cwd()}). Give a folder that save_pretrained wrote, "
            "or a hub id such as Qwen/Qwen3-1.7B."
        )
    if path.is_dir() and not (path / needs).is_file():
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise ValueError(f"{option} {model!r} has no {needs}, it has {there}. Give the folder of one checkpoint.")


def identify(model: str) -> dict[str, str]:
    """What tells a model from others: `path`, and the `fingerprint` of a local folder."""
    path = Path(model).expanduser()
    if path.is_dir():
        return {"path": str(path.resolve()), "fingerprint": fingerprint(path)}
    return {"path": model}


def versions(packages: Sequence[str] = TRAINING) -> dict[str, str]:
    """Versions of this package, of Python, and of those packages that are installed."""
    found = {"opd_trl": opd_trl.__version__, "python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def conditions() -> dict[str, Any]:
    """Under which conditions a result is made: versions, commit, command, machine and date."""
    return {
        "versions": versions(EVALUATION),
        "git_commit": _commit(),
        "command": shlex.join(["opd-trl", *without_secrets(sys.argv[1:])]) if sys.argv else "",
        "machine": _machine(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The commit of the checkout that the package is run from, with a `+` where its files are changed; or None."""
    folder = Path(opd_trl.__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + "+" * bool(changed.stdout.strip()) if head.returncode == 0 else None


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{len(os.sched_getaffinity(0))} CPU cores, {platform.machine()}"
