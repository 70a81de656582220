"""A served tiny teacher. These tests need a vLLM in an environment of its own, which `make test-vllm` makes.

`make test` leaves them out: vLLM for CPUs pins another transformers than this package runs with, and takes 3 GB.
"""

import pytest
from transformers import Qwen3ForCausalLM

from opd_trl.teachers.server import PROBE_TEXT
from tests import tiny
from tests.vllm.server import MAX_LENGTH, PYTHON, vllm_server


REASON = "needs a vLLM of its own: make test-vllm"
MAX_LOGPROBS = 30
API_KEY = "sesame"
FIGURES = pytest.StashKey[list[str]]()

collect_ignore_glob = [] if PYTHON else ["test_*.py"]


def pytest_terminal_summary(terminalreporter, config):
    if not PYTHON:
        terminalreporter.write_line(f"tests/vllm is left out: {REASON}")
    for line in config.stash.get(FIGURES, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def measured(request):
    """Takes lines that are printed after all tests."""
    return request.config.stash.setdefault(FIGURES, []).append


@pytest.fixture(scope="session")
def teacher_path(tmp_path_factory) -> str:
    """Its head dimension is 32, since vLLM's attention on CPUs refuses the 8 of other tests."""
    folder = tmp_path_factory.mktemp("teacher")
    return tiny.save(folder, seed=1, hidden_size=48, head_dim=32, max_position_embeddings=MAX_LENGTH)


@pytest.fixture(scope="session")
def teacher(teacher_path) -> Qwen3ForCausalLM:
    """What the server serves, in this process."""
    return Qwen3ForCausalLM.from_pretrained(teacher_path).eval()


@pytest.fixture(scope="session")
def reader_path(tmp_path_factory) -> str:
    """A teacher that has learned to read a text, as one whose hidden states are pooled must have."""
    folder = tmp_path_factory.mktemp("reader")
    sizes = {"hidden_size": 48, "head_dim": 32, "max_position_embeddings": MAX_LENGTH}
    return tiny.save_reader(folder, PROBE_TEXT, seed=1, **sizes)


@pytest.fixture(scope="session")
def url(teacher_path, tmp_path_factory) -> str:
    """A server that asks for `API_KEY`, which every trainer finds in the environment."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    options = ["--max-logprobs", str(MAX_LOGPROBS), "--api-key", API_KEY]
    with pytest.MonkeyPatch.context() as patch, vllm_server(teacher_path, log, *options) as url:
        patch.setenv("OPD_TRL_API_KEY", API_KEY)
        yield url
