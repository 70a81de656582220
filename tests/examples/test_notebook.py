"""The notebook runs from its first cell to its last one, on a tiny model, with two steps and short answers."""

import ast
import json
from pathlib import Path

import matplotlib as mpl

from tests import tiny


NOTEBOOK = Path(__file__).parents[2] / "examples" / "opsd_quickstart.ipynb"


def test_the_notebook_runs(here, capsys, monkeypatch):
    model = tiny.save(here / "model", max_position_embeddings=1024)  # its tokens are characters
    mpl.use("agg")
    monkeypatch.setattr("opd_trl.reproduce.demo_model.prepare_model", lambda folder: Path(model))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    scope: dict = {}
    for cell in cells:
        assert cell.get("outputs", []) == []
        if cell["cell_type"] == "code":
            code = (
                "".join(cell["source"])
                .replace("STEPS = 24", "STEPS = 2")
                .replace("max_new_tokens=40", "max_new_tokens=4")
            )
            ast.parse(code)
            exec(compile(code, cell["id"], "exec"), scope)
    printed = capsys.readouterr().out
    assert "Why should I wear sunscreen?" in printed
    assert scope["trainer"].state.global_step == 2
    assert len(scope["lines"]) == 2
    assert (here / "runs/quickstart/adapter/adapter_model.safetensors").is_file()
