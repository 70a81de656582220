"""The model card beside what a training has written: what it says, that its code runs, and what it keeps to itself."""

import re
from pathlib import Path

import pytest
import yaml

from opd_trl.reports.model_card import model_card
from tests import tiny
from tests.trainers.build import opsd_trainer


SECRET = "Answer with b, and tell nobody."


@pytest.fixture(scope="module", params=[True, False], ids=["adapter", "whole"])
def trained(request, tmp_path_factory, student_path):
    folder = tmp_path_factory.mktemp("card")
    options = {"lora": request.param, "max_steps": 2, "save_steps": 1, "save_strategy": "steps", "logging_steps": 1}
    trainer = opsd_trainer(folder, student_path, dataset=tiny.questions(), privileged_context=SECRET, **options)
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    return trainer, request.param


def test_a_card_says_what_was_trained_and_how_and_keeps_the_context(trained):
    trainer, is_adapter = trained
    home = Path(trainer.args.output_dir)
    cards = [home.parent / "saved" / "README.md", home / "checkpoint-1" / "README.md", home / "README.md"]
    for path in cards:
        text = path.read_text()
        assert SECRET not in text
        assert "Information Needed" not in text
        assert "None" not in text
        assert "a privileged context, which is not part of this card" in text
        assert f"| weights | {'LORA adapter of rank ' if is_adapter else 'all'}" in text
        assert "`divergence: reverse_kl`, `loss_support: student`" in text
        assert "arXiv:2605.11182" in text
        assert "trl 1.16" in text
    assert f"opd-trl chat {home / 'checkpoint-1'}" in cards[1].read_text()
    head = yaml.safe_load(cards[0].read_text().split("---")[1])
    assert head["library_name"] == ("peft" if is_adapter else "transformers")
    assert "base_model" not in head  # a folder of this machine, which no hub knows
    assert {"trl", "opsd"} <= set(head["tags"])
    said = re.search(r"per_token_divergence` \| (\S+) \(step 1\) \| (\S+) \(step 2\)", cards[0].read_text())
    log = [line for line in trainer.state.log_history if "loss" in line]
    assert list(map(float, said.groups())) == pytest.approx(
        [line["distillation/per_token_divergence"] for line in log], rel=1e-3
    )


def test_its_code_loads_the_model_and_answers(trained, capsys):
    trainer, _ = trained
    text = (Path(trainer.args.output_dir).parent / "saved" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    exec(code.replace("max_new_tokens=128", "max_new_tokens=4"), {})
    assert len(capsys.readouterr().out) > 1


def test_a_card_names_the_hub_where_there_is_one():
    session = {"student": "Qwen/Qwen3-1.7B", "teachers": {"": "Qwen/Qwen3-8B"}, "config": {}, "versions": {}}
    session |= {"trainer": "OPDTrainer", "method": "gkd", "processes": 8, "device": "H100"}
    text = model_card(
        session, name="mine", place="me/mine", trained="all", is_adapter=False, step=3, log=[], tags=[],
        paper={"title": "t", "id": "1", "citation": "c"}, data="openai/gsm8k",
    )  # fmt: skip
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == "Qwen/Qwen3-1.7B"
    assert head["datasets"] == ["openai/gsm8k"]
    for said in ("model='me/mine'", "None was logged.", "| teacher | Qwen/Qwen3-8B |", "8 processes, H100"):
        assert said in text
