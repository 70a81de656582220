import json

import internalise_retention as retention
import pytest
from internalise import main
from internalise_lines import add_line, cell_of, read_lines
from peft import LoraConfig, get_peft_model

from tests import tiny

from .lines import evaluated, line, trained


def arguments(folder, *more):
    files = [
        "--results",
        folder / "r.jsonl",
        "--retention-results",
        folder / "kept.jsonl",
        "--output",
        folder / "cells",
    ]
    return ["--retention", "--model", "student", *map(str, files), *more]


def add_cells(folder, *cells, adapters=True):
    for cell in cells:
        add_line(folder / "r.jsonl", cell)
        if adapters:
            place = folder / "cells" / "-".join(map(str, cell_of(cell))) / "adapter"
            place.mkdir(parents=True)
            (place / "adapter_config.json").write_text("{}")


def test_finished_adapters_are_evaluated_after_the_student_and_those_with_a_line_are_not_again(tmp_path, monkeypatch):
    asked = []

    def evaluate(cell, model, adapter, output):
        asked.append((cell, adapter and adapter.parent.name, output.parent.name))
        if len(asked) == 3:
            raise RuntimeError("killed")
        return evaluated(*cell) | {"wall_seconds": 1.0}

    monkeypatch.setattr(retention, "evaluate", evaluate)
    add_line(tmp_path / "r.jsonl", line(objective="teacher"))
    add_cells(tmp_path, trained("jsd"), trained("sft"), trained("jsd", seed=1))
    assert main(arguments(tmp_path)) == 2
    assert asked == [
        (("any", "before", 0), None, "any-before-0"),
        (("json", "jsd", 0), "json-jsd-0", "json-jsd-0"),
        (("json", "sft", 0), "json-sft-0", "json-sft-0"),
    ]
    assert main(arguments(tmp_path)) == 0
    assert [cell for cell, *_ in asked[3:]] == [("json", "sft", 0), ("json", "jsd", 1)]
    assert len(read_lines(tmp_path / "kept.jsonl")) == 4


def test_rule_objective_and_seed_choose_the_adapters(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        retention, "evaluate", lambda cell, *_: asked.append(cell) or evaluated(*cell) | {"wall_seconds": 1.0}
    )
    add_cells(tmp_path, trained("jsd"), trained("jsd", seed=1))
    assert main(arguments(tmp_path, "--seed", "1")) == 0
    assert asked == [("any", "before", 0), ("json", "jsd", 1)]


def test_a_finished_cell_without_its_adapter_is_named_before_anything_is_run(tmp_path, capsys):
    add_cells(tmp_path, trained("jsd"), adapters=False)
    assert main(arguments(tmp_path)) == 2
    assert "json-jsd-0/adapter holds no adapter" in capsys.readouterr().err
    assert not (tmp_path / "kept.jsonl").exists()


def test_figures_stand_in_the_order_of_their_ids_whatever_the_order_of_the_samples(tmp_path):
    samples = [
        {"part": "tasks", "problem": "b", "correct": False},
        {"part": "texts", "problem": "d", "nats": 200.0, "bytes": 100},
        {"part": "tasks", "problem": "a", "correct": True},
        {"part": "texts", "problem": "c", "nats": 50.0, "bytes": 100},
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    conditions = {"versions": {}, "git_commit": "c", "machine": "m", "date": "d", "command": "with paths"}
    result = {"protocol_hash": "p", "identity": {"data": {"tasks": 2}}, "conditions": conditions}
    (tmp_path / "result.json").write_text(json.dumps(result))
    found = retention.line_of(("json", "jsd", 1), tmp_path)
    assert (found["tasks"], found["nats_per_byte"]) == ([1, 0], [0.5, 2.0])
    assert cell_of(found) == ("json", "jsd", 1)
    assert "command" not in found["conditions"]


def test_an_adapter_is_evaluated_by_the_command_with_all_questions_and_texts(tmp_path):
    model = tiny.save(tmp_path / "student")
    adapter = tmp_path / "cell" / "adapter"
    get_peft_model(tiny.build_model(), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(adapter)
    found = retention.evaluate(("json", "jsd", 0), model, adapter, tmp_path / "cell" / "retention")
    assert (len(found["tasks"]), len(found["nats_per_byte"])) == (60, 30)
    assert all(nats > 0 for nats in found["nats_per_byte"])
    assert str(tmp_path) not in json.dumps(found)
    identity = json.loads((tmp_path / "cell" / "retention" / "run.json").read_text())
    assert (identity["model"]["path"], identity["adapter"]["path"]) == (model, str(adapter))


def test_an_evaluation_that_fails_names_its_log(tmp_path):
    with pytest.raises(RuntimeError, match=r"status 2; its log: .*retention\.log"):
        retention.evaluate(retention.BEFORE, str(tmp_path / "none"), None, tmp_path / "cell" / "retention")
    assert "none" in (tmp_path / "cell" / "retention.log").read_text()
