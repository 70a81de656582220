import json
from itertools import islice, repeat
from types import SimpleNamespace

import internalise_cell as cell
import pytest
import torch
from internalise_rules import RULES, TRAIN, read_prompts
from transformers import AutoModelForCausalLM

from tests import tiny


CONTEXT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hi."},
]


@pytest.fixture(scope="module")
def model_and_tokenizer():
    return tiny.build_model(), tiny.build_tokenizer()


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


def test_of_two_system_messages_the_prompt_keeps_the_last_word():
    prompt = [{"role": "system", "content": "Count."}, {"role": "user", "content": "1, 2"}]
    merged = cell.with_context(CONTEXT, prompt)
    assert [turn["role"] for turn in merged] == ["system", "user", "assistant", "user"]
    assert merged[0]["content"] == "Be brief.\n\nCount."
    assert cell.with_context([], prompt) == prompt
    assert cell.with_context(CONTEXT, prompt[1:]) == CONTEXT + prompt[1:]


def test_answers_do_not_depend_on_what_else_is_in_the_batch(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    prompts = [[{"role": "user", "content": text}] for text in ("Hi", "What is the capital of Norway?")]
    together = cell.generate(model, tokenizer, prompts, 8)
    assert all(tokenizer.eos_token_id not in ids[:-1] for ids in together)
    assert together == [cell.generate(model, tokenizer, [prompt], 8)[0] for prompt in prompts]


def test_sampled_answers_follow_the_seed_of_torch(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(cell.generate(model, tokenizer, [CONTEXT[:2]], 16, temperature=1.0))
    assert drawn[0] == drawn[1] != drawn[2]


def test_nats_per_token_of_a_model_that_knows_nothing_is_the_log_of_its_vocabulary(model_and_tokenizer):
    _, tokenizer = model_and_tokenizer
    model = tiny.build_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert cell.nats_per_token(model, tokenizer) == pytest.approx(torch.log(torch.tensor(103.0)).item(), abs=1e-4)


def test_teacher_rows_stand_after_the_students_own_prompt_and_have_no_end(model_and_tokenizer, two_steps):
    model, tokenizer = model_and_tokenizer
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


@pytest.mark.parametrize("objective", ["before", "stop_gradient_topk", "sft"])
def test_a_cell_is_trained_judged_and_described(student_path, tmp_path, two_steps, objective):
    line = cell.run_cell(arguments(student_path, tmp_path, objective), budget=20)
    assert {name: len(line[name]) for name in ("greedy", "sampled", "elsewhere")} == {
        "greedy": 48,
        "sampled": 48,
        "elsewhere": 48,
    }
    assert json.loads(json.dumps(line)) == line
    assert {"rule", "objective", "seed", "wall_seconds", "date", "machine", "retention"} <= line.keys()
    texts = json.loads((tmp_path / "answers.json").read_text())
    assert cell.verdicts(RULES["json"], texts) == {name: line[name] for name in texts}
    if objective != "before":
        assert line["steps"] == 2
        assert 0 < line["completion_tokens"] <= 24
        assert (tmp_path / "adapter" / "adapter_config.json").is_file()
        assert (tmp_path / "history.jsonl").read_text()


def test_both_ways_of_training_get_the_same_adapter(student_path, tmp_path, two_steps):
    for objective in ("jsd", "sft"):
        cell.run_cell(arguments(student_path, tmp_path / objective, objective), budget=20)
    configs = [json.loads((tmp_path / x / "adapter" / "adapter_config.json").read_text()) for x in ("jsd", "sft")]
    for config in configs:
        config["target_modules"] = sorted(config["target_modules"])
    assert configs[0] == configs[1]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "sft" / "adapter")
