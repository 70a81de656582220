import json

import pytest

from opd_trl.cli.main import main
from tests import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture
def protocol(tmp_path):
    """Write a small protocol and return its path."""

    def write(suite="math", **values) -> str:
        keys = {"suite": suite, "temperature": 1.0, "max_new_tokens": 6, "n": 2, "seeds": [0, 1], **values}
        path = tmp_path / "protocol.yaml"
        path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
        return str(path)

    return write


@pytest.fixture
def rows(tmp_path):
    """Write rows as JSONL and return the path."""

    def write(rows, name="rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def sums(rows) -> str:
    return rows([{"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(6)])


@pytest.fixture
def evaluate(model, tmp_path, capsys, monkeypatch):
    """Run `opd-trl eval`; return exit status, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, str, str]:
        status = main(["eval", "--model", model, *argv])
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


@pytest.fixture
def refused(evaluate, tmp_path):
    """Run what must be refused; return the message. Nothing is written."""

    def run(*argv: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        status, _, error = evaluate(*argv)
        assert status == 2
        assert error.startswith("opd-trl eval: error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run
