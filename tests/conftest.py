import json
import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# The models here are tiny: more threads only get in the way of parallel test processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests import tiny


torch.set_num_threads(1)


@pytest.fixture(scope="session")
def student_path(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def teacher_path(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("teacher"), seed=1, hidden_size=48)


@pytest.fixture(scope="session")
def make_parser():
    """A fresh strict parser by the name of its command; a recipe leaves its defaults in the parser."""
    from opd_trl.scripts import opd, opsd

    scripts = {"opd": opd, "opsd": opsd}
    return lambda name="opsd": scripts[name].make_parser(prog=f"opd-trl {name}")


@pytest.fixture
def parse(make_parser):
    """Parse a command line as `opd-trl` does: dataclasses, launch flags of the recipe, launch flags of the line."""

    def run(*argv: str, name: str = "opsd"):
        return make_parser(name).parse_args_and_config(
            [*argv, "--use_cpu"], return_remaining_strings=True, separate_remaining_strings=True
        )

    return run


@pytest.fixture
def refused(parse, capsys):
    """Parse a command line that must be refused; return the one line of the error."""

    def run(*argv: str, name: str = "opsd") -> str:
        with pytest.raises(SystemExit) as exit_:
            parse(*argv, name=name)
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"opd-trl {name}: error: ")
        assert error.count("\n") == 1
        return error

    return run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write_rows(here):
    """Write rows to a JSONL file in the working directory."""

    def write(name: str, count: int = 3):
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = ({"prompt": [{"role": "user", "content": f"question {i}"}]} for i in range(count))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
