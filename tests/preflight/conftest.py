import json

import pytest
import yaml

from opd_trl.cli.main import main


@pytest.fixture
def recipe(tmp_path, monkeypatch, student_path, teacher_path):
    """Write a recipe of tiny models into an empty working directory; options override or add keys, None removes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def write(*, rows=None, **options) -> str:
        rows = rows or [{"prompt": [{"role": "user", "content": f"{'a' * (i % 4 + 1)} plus {i}?"}]} for i in range(8)]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {
            "model_name_or_path": student_path,
            "teacher_model_name_or_path": teacher_path,
            "dataset_name": "train.jsonl",
            "output_dir": "out",
            "max_completion_length": 8,
            "per_device_train_batch_size": 4,
            "loss_top_k": 5,
            "bf16": False,
            "gradient_checkpointing": False,
        } | options
        values = {name: value for name, value in values.items() if value is not None}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        return "recipe.yaml"

    return write


@pytest.fixture
def run(capsys, tmp_path):
    """Run a command of `opd-trl`; return its status, what it printed on both streams, and the JSON that it wrote.

    A pre-flight makes no trial unless it is asked for: that takes longer than all the rest.
    """

    def call(*argv: str):
        if argv[0] == "preflight" and "--trial" not in argv:
            argv = (*argv, "--no-trial")
        status = main([*argv, "--json", "figures.json"])
        printed = capsys.readouterr()
        file = tmp_path / "figures.json"
        return (
            status,
            " ".join((printed.out + printed.err).split()),
            json.loads(file.read_text()) if file.exists() else None,
        )

    return call
