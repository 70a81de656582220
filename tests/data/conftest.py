import json
from pathlib import Path

import pytest

from opd_trl.cli.data import main


# Real data beside the checkout, where there is some.
REAL = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def real():
    """A file of real data, or a skipped test."""

    def find(name: str) -> Path:
        path = REAL / name
        if not path.is_file():
            pytest.skip(f"no {path.name} of {path.parent.name} beside the checkout")
        return path

    return find


@pytest.fixture
def data(here, capsys):
    """Run `opd-trl data`; return exit status, output and the one line of an error."""

    def run(*argv: str) -> tuple[int, str, str]:
        status = main([str(text) for text in argv])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()[-1] if captured.err.strip() else ""

    return run


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def user(text: str) -> list:
    return [{"role": "user", "content": text}]
