import json

import pytest
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import get_training_chat_template

from opd_trl.cli.toy import main
from opd_trl.data.splits import prompt_key
from opd_trl.data.toy_task import addition
from opd_trl.evaluation import math_accuracy

from .conftest import read, user


PARTS = ("sft", "rlvr", "opd", "test")


@pytest.fixture
def toy(here):
    assert main(["--output", "toy"]) == 0
    return here / "toy"


def test_the_parts_share_no_prompt_and_no_seed_trains_on_anothers_test_set():
    made = [addition(seed) for seed in (0, 1)]
    keys = [{part: {prompt_key(row["prompt"]) for row in rows} for part, rows in parts.items()} for parts in made]
    assert keys[0] == keys[1]
    assert tuple(keys[0]) == PARTS
    assert sum(map(len, keys[0].values())) == len(set().union(*keys[0].values())) == 6**5
    assert made[0]["sft"] != made[1]["sft"]


def test_completions_are_right_and_one_in_four_is_worked():
    rows = addition(0)["sft"]
    texts = [row["completion"][0]["content"] for row in rows]
    worked = sum("=" in text for text in texts) / len(texts)
    assert worked == pytest.approx(0.25, abs=0.03)
    answers = {prompt_key(row["prompt"]): row["answer"] for part in ("rlvr", "opd") for row in addition(0)[part]}
    assert len(answers) == len(addition(0)["rlvr"]) + len(addition(0)["opd"])
    sums = [str(sum(map(int, row["prompt"][0]["content"].split(" ")[0].split("+"))) % 6) for row in rows[:100]]
    assert math_accuracy(texts[:100], sums) == [1.0] * 100


def test_stock_trl_finds_the_files_by_folder_and_configuration(toy):
    for part in PARTS:
        assert len(load_dataset(str(toy), part, split="train")) == len(read(toy / f"{part}.jsonl"))


def test_a_folder_that_is_written_again_is_read_again(here, toy):
    first = load_dataset("toy", "sft", split="train")[:3]
    assert main(["--output", "toy", "--seed", "1", "--overwrite"]) == 0
    assert load_dataset("toy", "sft", split="train")[:3] != first
    assert load_dataset("toy", "sft", split="train")[0] == read(here / "toy" / "sft.jsonl")[0]


def test_the_tokenizer_reads_back_what_it_writes_and_ends_turns(toy):
    tokenizer = AutoTokenizer.from_pretrained(toy / "model")
    turns = [{"role": "system", "content": "Be brief: {x} \\boxed ~"}, *user("7+8 mod 10")]
    answer = {"role": "assistant", "content": "7+8=5:\\boxed{5}"}
    text = tokenizer.apply_chat_template([*turns, answer], tokenize=False)
    assert text == (
        "<|system|>Be brief: {x} \\boxed ~<|end|><|user|>7+8 mod 10<|end|><|assistant|>7+8=5:\\boxed{5}<|end|>"
    )
    ids = tokenizer.apply_chat_template([*turns, answer], return_dict=True, return_assistant_tokens_mask=True)
    assert tokenizer.decode(ids["input_ids"]) == text
    wrote = [token for token, mask in zip(ids["input_ids"], ids["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(wrote) == "7+8=5:\\boxed{5}<|end|>"
    assert len(tokenizer("\\boxed{")["input_ids"]) == 1
    assert text.startswith(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert get_training_chat_template(tokenizer) is None  # fit for training as it is


def test_the_model_is_small_fixed_by_its_seed_and_ends_where_the_tokenizer_does(toy, here):
    model = AutoModelForCausalLM.from_pretrained(toy / "model")
    assert 4e5 < sum(parameter.numel() for parameter in model.parameters()) < 5e5
    assert model.generation_config.eos_token_id == AutoTokenizer.from_pretrained(toy / "model").eos_token_id
    weights = (toy / "model" / "model.safetensors").read_bytes()
    for seed, same in ((0, True), (1, False)):
        assert main(["--output", f"again{seed}", "--seed", str(seed)]) == 0
        assert ((here / f"again{seed}" / "model" / "model.safetensors").read_bytes() == weights) == same


@pytest.mark.parametrize("name", ["README.md", "opd.jsonl", "model"])
def test_any_file_in_the_way_is_a_reason_to_write_nothing(name, here, capsys):
    (here / "toy").mkdir()
    (here / "toy" / name).touch()
    assert main(["--output", "toy"]) == 2
    assert [path.name for path in (here / "toy").iterdir()] == [name]


def test_nothing_is_overwritten_unless_allowed(toy, capsys):
    (toy / "sft.jsonl").write_text("mine")
    before = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    assert main(["--output", str(toy)]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()} == before
    (toy / "notes.txt").write_text("mine")
    assert main(["--output", str(toy), "--overwrite"]) == 0
    assert (toy / "notes.txt").read_text() == "mine"
    assert json.loads((toy / "sft.jsonl").read_text().splitlines()[0]).keys() == {"prompt", "completion"}
