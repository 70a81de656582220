import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pytest
import torch

from tests import tiny


# The models here are tiny: more threads only get in the way of parallel test processes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def student_path(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def teacher_path(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("teacher"), seed=1, hidden_size=48)
