import json
from itertools import islice, repeat
from types import SimpleNamespace

import internalise_cell as cell
import pytest
from internalise_rules import RULES, TRAIN, read_prompts
from transformers import AutoModelForCausalLM

from tests import tiny


@pytest.fixture(scope="module")
def student_path(tmp_path_factory):
    """A tiny student with room for the worked examples, character by character."""
    return tiny.save(tmp_path_factory.mktemp("student"), max_position_embeddings=1024)


@pytest.fixture
def two_steps(monkeypatch):
    monkeypatch.setitem(cell.SETTINGS, "max_steps", 2)
    monkeypatch.setitem(cell.SETTINGS, "per_device_train_batch_size", 2)
    monkeypatch.setattr(cell, "MAX_COMPLETION_LENGTH", 6)
    monkeypatch.setattr(cell, "MAX_NEW_TOKENS", 3)


def arguments(path, folder, objective):
    return SimpleNamespace(
        model=path, rule="json", objective=objective, seed=0, output=folder, device="cpu", settings={}, held_out=48
    )


def test_teacher_rows_stand_after_the_students_own_prompt_and_have_no_end(two_steps):
    model, tokenizer = tiny.build_model(), tiny.build_tokenizer()
    asked = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in read_prompts(TRAIN)]
    rows = list(islice(cell.teacher_rows(model, tokenizer, RULES["json"], seed=0), len(asked) + 1))
    prompts = [tokenizer.decode(row["input_ids"][: row["completion_mask"].index(1)]) for row in rows]
    assert sorted(prompts[:-1]) == sorted(asked)
    assert prompts[-1] == prompts[0]


@pytest.mark.parametrize(("budget", "count"), [(1, 2), (12, 2), (19, 4), (29, 4)])
def test_sft_rows_are_equally_many_per_step_with_the_budgets_tokens(monkeypatch, two_steps, budget, count):
    row = {"input_ids": [3] * 8, "completion_mask": [0, 0, 1, 1, 1, 1, 1, 1]}
    monkeypatch.setattr(cell, "teacher_rows", lambda *args, seed: repeat(row))
    assert cell.sft_rows(None, None, RULES["json"], seed=0, budget=budget, steps=2) == count * [row]


def test_cells_are_trained_with_the_same_adapter_judged_and_described(student_path, tmp_path, two_steps):
    adapters = []
    for objective in ("before", "stop_gradient_topk", "sft"):
        folder = tmp_path / objective
        line = cell.run_cell(arguments(student_path, folder, objective), budget=20)
        assert {len(line[name]) for name in ("greedy", "sampled", "elsewhere")} == {48}
        assert json.loads(json.dumps(line)) == line
        assert {"rule", "objective", "seed", "wall_seconds", "date", "machine", "peft", "commit"} <= line.keys()
        assert 1 < line["retention"] < 20
        texts = json.loads((folder / "answers.json").read_text())
        assert cell.verdicts(RULES["json"], texts) == {name: line[name] for name in texts}
        if objective != "before":
            assert line["steps"] == 2
            assert 0 < line["completion_tokens"] <= 24
            assert (folder / "history.jsonl").read_text()
            config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
            adapters.append(config | {"target_modules": sorted(config["target_modules"])})
    assert adapters[0] == adapters[1]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "adapter")
