import json
import shutil

import pytest
import torch
from transformers import Qwen3ForCausalLM

from tests import tiny
from tests.serving import gated_model
from tests.serving.server import serve


VOCAB = 110  # rows of the head; the tokenizer has 103 tokens
NOT_A_NUMBER = 99  # the id whose embedding is NaN
LIMITS = {
    "--max-sequences": "6",
    "--batch-size": "2",
    "--max-logprobs": "30",
    "--max-request-mib": "1",
    "--max-length": "400",
}


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> str:
    """A tiny teacher that gives NaN for sequences with one id."""
    folder = tmp_path_factory.mktemp("served")
    model = tiny.build_model(seed=1, vocab_size=VOCAB, tie_word_embeddings=False)
    model.model.embed_tokens.weight.data[NOT_A_NUMBER] = float("nan")
    model.save_pretrained(folder)
    tiny.build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def model(model_path) -> Qwen3ForCausalLM:
    """What the server serves, in this process."""
    return Qwen3ForCausalLM.from_pretrained(model_path).eval()


@pytest.fixture(scope="session")
def url(model_path) -> str:
    """A server that asks for no key and has the limits of `LIMITS`."""
    flags = [part for pair in LIMITS.items() for part in pair]
    with serve(model_path, "--served-model-name", "teacher", *flags) as url:
        yield url


@pytest.fixture(scope="session")
def local_log_probs(model):
    """Log-probabilities `(W - 1, V)` of W tokens: row j is the distribution that predicts token j + 1."""

    @torch.no_grad()
    def log_probs(ids: list[int], temperature: float = 1.0) -> torch.Tensor:
        return (model(torch.tensor([ids])).logits[0, :-1].float() / temperature).log_softmax(-1)

    return log_probs


@pytest.fixture(scope="session")
def gated_path(tmp_path_factory) -> str:
    """A model with code of its own, as a model of the hub may have it."""
    path = tmp_path_factory.mktemp("gated")
    tiny.save(path)
    shutil.copy(gated_model.__file__, path / "gated_model.py")
    config = json.loads((path / "config.json").read_text())
    config["architectures"] = ["GatedForCausalLM"]
    config["auto_map"] = {"AutoModelForCausalLM": "gated_model.GatedForCausalLM"}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)
