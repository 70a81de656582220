"""Folders of LoRA adapters as student and teacher, and the base that they name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from opd_trl import OPDConfig, OPDTrainer
from opd_trl.cli.main import main
from opd_trl.models.loading import load_model
from opd_trl.models.lora_folders import base_of, load_causal_lm, tokenizer_of_path
from opd_trl.serving.scorer import load_scorer
from opd_trl.serving.start import check
from tests import tiny
from tests.trainers.build import lora_config, opd_trainer, opsd_trainer, settings


IDS = torch.arange(3, 40)[None]


def save_adapter(folder: Path, base: str, **options) -> str:
    torch.manual_seed(3)
    config = lora_config(init_lora_weights=False, **options)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, student_path) -> str:
    return save_adapter(tmp_path_factory.mktemp("lora"), student_path)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS).logits.float()


@pytest.fixture(scope="module")
def wanted(adapter, student_path) -> torch.Tensor:
    """What base and adapter say together, by PEFT's own means: far from what the base says."""
    base = AutoModelForCausalLM.from_pretrained(student_path)
    alone = logits(base)
    together = logits(PeftModel.from_pretrained(base, adapter))
    assert (together - alone).abs().max() > 0.1
    return together


def test_an_adapter_is_a_teacher_with_its_own_numbers(tmp_path, student_path, adapter, wanted):
    trainer = opd_trainer(tmp_path, student_path, adapter)
    torch.testing.assert_close(logits(trainer.teacher.model), wanted)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
    torch.testing.assert_close(logits(trainer.teacher.model), wanted)


def test_an_adapter_is_a_student_that_is_trained_further(tmp_path, adapter, teacher_path, student_path, wanted):
    trainer = opd_trainer(tmp_path, adapter, teacher_path)
    torch.testing.assert_close(logits(trainer.model), wanted)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    after = load_causal_lm(str(tmp_path / "out"))
    assert (logits(after) - wanted).abs().max() > 1e-3
    base = AutoModelForCausalLM.from_pretrained(student_path)
    for name, weight in base.state_dict().items():
        assert torch.equal(after.get_base_model().state_dict()[lora_name(name, after)], weight)


def lora_name(name: str, model) -> str:
    """A weight's name in a model whose linear layers LoRA has wrapped."""
    wrapped = f"{name.removesuffix('.weight')}.base_layer.weight"
    return wrapped if wrapped in model.get_base_model().state_dict() else name


def test_an_adapter_teaches_itself_with_a_privileged_context(tmp_path, adapter):
    trainer = opsd_trainer(tmp_path, adapter, lora=False, teacher_model_kind="live")
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


@pytest.mark.parametrize("given", ["path", "model"])
def test_an_adapter_names_its_base_so_that_it_loads_from_elsewhere(
    tmp_path, student_path, teacher_path, monkeypatch, given
):
    shutil.copytree(student_path, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    student = "base" if given == "path" else AutoModelForCausalLM.from_pretrained("base")
    options = {"peft_config": lora_config()}
    opd_trainer(tmp_path, student, teacher_path, trainer_options=options).save_model("adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert base_of("../adapter") == str(tmp_path / "base")
    load_causal_lm("../adapter")


def test_a_server_and_an_evaluation_load_an_adapter_with_its_base(adapter, student_path, wanted):
    from argparse import Namespace

    check(Namespace(model=adapter, host="127.0.0.1"), key=None)
    torch.testing.assert_close(logits(load_scorer(adapter, device="cpu").model), wanted)
    torch.testing.assert_close(logits(load_model(student_path, adapter=adapter, device="cpu")), wanted)


def test_a_plan_counts_an_adapter_as_the_training_of_that_adapter(here, adapter, student_path, teacher_path, capsys):
    lengths = ("--prompt-length", "16", "--max_completion_length", "8", "--lora_target_modules", "all-linear")
    teacher = save_adapter(here / "teacher", teacher_path)

    def plan(student: str, teacher: str, *argv: str) -> dict:
        models = ("--model_name_or_path", student, "--teacher_model_name_or_path", teacher)
        assert main(["plan", *models, *lengths, *argv, "--json", "plan.json"]) == 0
        return json.loads(Path("plan.json").read_text())

    recipe = plan(student_path, teacher_path, "--use_peft", "true", "--lora_r", "4")
    assert plan(adapter, teacher) == recipe
    assert plan(student_path, teacher_path) != recipe


def test_the_tokenizer_beside_an_adapter_comes_before_that_of_its_base(tmp_path, adapter, student_path):
    assert tokenizer_of_path(adapter) == student_path
    shutil.copytree(adapter, tmp_path / "own")
    tiny.build_tokenizer().save_pretrained(tmp_path / "own")
    assert tokenizer_of_path(str(tmp_path / "own")) == str(tmp_path / "own")


def renamed_base(adapter: str, folder: Path, base) -> str:
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    return str(folder)


@pytest.mark.parametrize(
    ("base", "message"),
    [("runs/demo/model", "its base model 'runs/demo/model', which does not exist"), (None, "no base model")],
)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_base_that_is_not_there_is_named_with_what_to_do(
    tmp_path, adapter, student_path, teacher_path, base, message, role
):
    lost = renamed_base(adapter, tmp_path / "lost", base)
    pair = (lost, teacher_path) if role == "student" else (student_path, lost)
    with pytest.raises(ValueError, match=f"is a LoRA adapter and names.*{message}.*adapter_config.json"):
        opd_trainer(tmp_path, *pair)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_is_refused(tmp_path, adapter, teacher_path, student_path):
    other = renamed_base(adapter, tmp_path / "other", teacher_path)
    with pytest.raises(ValueError, match=f"the adapter {other} does not fit {teacher_path}"):
        opd_trainer(tmp_path, student_path, other)


def test_a_fresh_adapter_on_top_of_one_is_refused(tmp_path, adapter, teacher_path):
    with pytest.raises(ValueError, match="is a LoRA adapter, and a new one is asked for"):
        opd_trainer(tmp_path, adapter, teacher_path, trainer_options={"peft_config": lora_config()})


def test_an_adapter_that_would_be_ignored_is_refused_as_a_folder_too(tmp_path, student_path, teacher_path):
    on_head = save_adapter(tmp_path / "head", student_path, target_modules=["lm_head", "q_proj"])
    with pytest.raises(ValueError, match="an adapter on `lm_head` would be ignored"):
        OPDTrainer(
            on_head, teacher_model=teacher_path, args=OPDConfig(**settings(tmp_path)), train_dataset=tiny.questions()
        )
