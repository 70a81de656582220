"""The LM head of a model that is not loaded: the tensors and the conventions of the loaded one, without its body."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from opd_trl.models.forward import completion_hidden_states, read_head
from opd_trl.models.saved_head import read_saved_head
from opd_trl.teachers.served_head import distance_from_norm
from tests import tiny
from tests.families import zoo


# Scales, caps, biases, tied heads, keys that transformers renames, images, bodies in parts.
FAMILIES = ["gemma2", "cohere", "granite", "phi", "gpt2", "opt", "falcon_h1", "llama4_text", "gpt_oss", "llava"]


@pytest.mark.parametrize("family", [*FAMILIES, "bloom"])  # which has a norm behind its embeddings too
def test_the_norm_is_the_one_whose_outputs_the_head_reads(tmp_path, family):
    model = zoo.build(family).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "norm" in name or "ln_" in name:
                x.add_(torch.rand_like(x))
    model.save_pretrained(tmp_path)
    norm, ids = read_saved_head(str(tmp_path)).norm, torch.arange(3, 11).unsqueeze(0)
    states, _ = completion_hidden_states(model, ids, torch.ones_like(ids), 7, multimodal={})
    assert distance_from_norm(states[0].detach(), norm).max() < 1e-3
    assert distance_from_norm(2 * states[0].detach(), norm).min() > 0.2


def assert_same(found, expected):
    assert torch.equal(found.weight, expected.weight)
    assert (found.bias is None) == (expected.bias is None)
    assert found.bias is None or torch.equal(found.bias, expected.bias)
    assert found.transform(1.0) == expected.transform(1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_that_of_the_loaded_model(tmp_path, family):
    model = zoo.build(family)
    model.save_pretrained(tmp_path)
    assert_same(read_saved_head(str(tmp_path)).head, read_head(model))


@pytest.mark.parametrize("family", ["minicpm3", "inkling_text"])
def test_a_family_that_divides_the_states_before_its_head_is_refused(tmp_path, family):
    zoo.build(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{family} .* changes the states between its final norm and its LM head"):
        read_saved_head(str(tmp_path))


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_file_that_holds_the_head_is_read_in_a_folder_or_of_the_hub(tmp_path, monkeypatch, tied):
    folder = tmp_path / "models--a--b" / "snapshots" / "0123"
    model = tiny.build_model(tie_word_embeddings=tied)
    model.save_pretrained(folder, max_shard_size="20KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )  # no metadata: no total_size
    files = set(index.values())
    assert len(files) > 2
    for name in files - {index["model.embed_tokens.weight" if tied else "lm_head.weight"], index["model.norm.weight"]}:
        (folder / name).write_text("not there")
    assert_same(read_saved_head(str(folder)).head, read_head(model))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("0123")
    assert_same(read_saved_head("a/b", dtype="float32").head, read_head(model))


def test_the_body_is_never_in_memory(tmp_path):
    tiny.build_model(hidden_size=256, num_hidden_layers=3, head_dim=2048).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size > 40 * 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = in_use("VmHWM")
    head = read_saved_head(str(tmp_path), dtype="bfloat16").head
    assert in_use("VmHWM") - before < 10 * 2**20
    assert (head.weight.dtype, head.weight.shape) == (torch.bfloat16, (103, 256))


def in_use(name: str) -> int:
    """Bytes of this process, as Linux counts them."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def without_head(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    save_file({name: x for name, x in tensors.items() if "embed" not in name}, folder / "model.safetensors")


def in_8_bits(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    save_file({name: x.to(torch.float8_e4m3fn) for name, x in tensors.items()}, folder / "model.safetensors")


@pytest.mark.attack("disk", "a teacher's folder without its LM head, cut short, or no model", "refused in one line")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_head, r"safetensors have no lm_head\.weight, which a qwen3 \(Qwen3ForCausalLM\) has"),
        (in_8_bits, r"is stored as torch\.float8_e4m3fn, expected one of"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"there is no model\.safetensors\. Save it as"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 99), "cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "cannot be read"),
    ],
)
def test_a_folder_without_a_head_that_can_be_read_is_refused(tmp_path, spoil, message):
    tiny.build_model().save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        read_saved_head(str(tmp_path))
    assert "\n" not in str(error.value)
