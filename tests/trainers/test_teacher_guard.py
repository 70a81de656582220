"""The base teacher is the student at step 0, and stays it while the student moves; what cannot be so is refused."""

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import EvaConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig

from opd_trl import OPSDTrainer
from opd_trl.teachers import AdaptersOffTeacher, AdapterTeacher, ModelTeacher
from tests import tiny
from tests.trainers.build import fixed_batch, lora_config, opd_trainer, opsd_trainer


IDS = torch.arange(10, 30)[None]


@torch.no_grad()
def log_probs(model):
    return model.eval()(input_ids=IDS).logits.log_softmax(-1)


def says(trainer):
    with trainer.teacher.scoring(trainer.model) as teacher:
        return log_probs(teacher)


def build(tmp_path, model, **options):
    trainer_options = {"processing_class": tiny.build_tokenizer()}
    if "peft_config" in options:
        trainer_options["peft_config"] = options.pop("peft_config")
    return opsd_trainer(tmp_path, model, lora=False, trainer_options=trainer_options, **options)


def corda(model):
    """CorDA cuts directions off each weight that it has found before the adapter is added; here the largest ones."""
    config = lora_config(target_modules=["q_proj", "down_proj"], init_lora_weights="corda", corda_config=CordaConfig())
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "down_proj")):
            u, s, vh = torch.linalg.svd(module.weight.data, full_matrices=False)
            module.eigens = SimpleNamespace(U_WC=u[:, : config.r], S_WC=s[: config.r], V_WC=vh[: config.r].T)
    return config


INITS = {
    "pissa": lambda model: lora_config(init_lora_weights="pissa_niter_4"),
    "corda": corda,
    "eva": lambda model: lora_config(init_lora_weights="eva", eva_config=EvaConfig()),
    "orthogonal": lambda model: lora_config(init_lora_weights="orthogonal"),
}


@pytest.mark.filterwarnings("ignore:lora with eva initialization")
@pytest.mark.parametrize(
    ("init", "kind"), [("pissa", "ema"), ("corda", "base"), ("eva", "ema"), ("orthogonal", "base")]
)
def test_student_and_teacher_start_as_the_model_that_was_given(tmp_path, init, kind):
    model = tiny.build_model()
    given = log_probs(model)
    trainer = build(tmp_path, model, peft_config=INITS[init](model), teacher_model_kind=kind)
    torch.testing.assert_close(log_probs(trainer.model), given, atol=1e-3, rtol=0)
    torch.testing.assert_close(says(trainer), given, atol=1e-3, rtol=0)


def unfrozen_norms():
    """A LoRA student whose norms its user trains too."""
    model = get_peft_model(tiny.build_model(), lora_config(init_lora_weights="olora"))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.requires_grad_(True)
    return model, {}


def unfrozen_head():
    model = get_peft_model(tiny.build_model(tie_word_embeddings=False), lora_config())
    model.get_output_embeddings().weight.requires_grad_(True)
    return model, {}


def fresh(tied=True, **options):
    model = tiny.build_model(attention_bias=True, tie_word_embeddings=tied)
    return model, {"peft_config": lora_config(**options)}


MOVING = {
    "bias": (lambda: fresh(bias="all"), AdaptersOffTeacher),
    "bias and a rewritten base": (lambda: fresh(bias="lora_only", init_lora_weights="pissa"), AdapterTeacher),
    "norms": (unfrozen_norms, AdapterTeacher),
    "head": (unfrozen_head, AdaptersOffTeacher),
    "modules to save": (lambda: fresh(modules_to_save=["lm_head", "norm"]), AdaptersOffTeacher),
    "tokens": (lambda: fresh(tied=False, trainable_token_indices=[10, 11]), AdaptersOffTeacher),
}


@pytest.mark.parametrize("case", MOVING)
def test_the_base_teacher_stays_while_everything_that_can_be_trained_moves(tmp_path, case):
    make, kind = MOVING[case]
    model, options = make()
    trainer = build(tmp_path, model, max_steps=2, learning_rate=0.1, **options)
    assert type(trainer.teacher) is kind
    given = log_probs(trainer.model)
    torch.testing.assert_close(says(trainer), given, atol=1e-4, rtol=0)
    trained = {name: x.clone() for name, x in trainer.model.named_parameters() if x.requires_grad}
    trainer.train()
    beside = [name for name in trained if "lora_" not in name]
    assert beside
    assert all(not torch.equal(trainer.model.get_parameter(n), trained[n]) for n in beside if "tokens" not in n)
    assert (log_probs(trainer.model) - given).abs().max() > 0.1
    torch.testing.assert_close(says(trainer), given, atol=1e-4, rtol=0)


def test_the_loss_reads_the_teachers_own_head_where_the_head_is_trained_beside_the_adapter(tmp_path):
    model, _ = unfrozen_head()
    trainer = build(tmp_path, model, learning_rate=0.1)
    before = model.get_output_embeddings().weight.detach().clone()
    trainer.train()
    trainer.model.train()
    head = trainer.teacher_scores(trainer.model, fixed_batch(trainer))[""].head
    assert torch.equal(head.weight, before)
    assert not torch.equal(model.get_output_embeddings().weight, before)


def test_a_teacher_that_moves_though_it_is_frozen_stops_the_run(tmp_path):
    options = {"max_steps": 4, "learning_rate": 0.1, "peft_config": lora_config()}
    trainer = build(tmp_path, tiny.build_model(), save_strategy="steps", save_steps=2, **options)
    trainer.model.get_input_embeddings().weight.requires_grad_(True)  # after the teacher has been built
    with pytest.raises(RuntimeError, match=r"the teacher has moved: at step 2.*unfrozen after the trainer was"):
        trainer.train()


def test_a_second_training_and_an_evaluation_raise_no_alarm(tmp_path):
    trainer = build(tmp_path, tiny.build_model(), peft_config=lora_config(), teacher_model_kind="ema")
    trainer.train()
    trainer.train()
    assert "eval_loss" in trainer.evaluate(trainer.train_dataset.select(range(4)))


class AnotherTeacher(OPSDTrainer):
    def _build_teachers(self, found, initial_copy):
        return {"": ModelTeacher(tiny.build_model(seed=5))}


def test_a_self_teacher_that_is_not_the_student_at_step_0_is_refused(tmp_path, monkeypatch, student_path):
    monkeypatch.setattr("tests.trainers.build.OPSDTrainer", AnotherTeacher)
    with pytest.raises(ValueError, match=r"\(teacher_model_kind='base'\) is not the student at step 0"):
        opsd_trainer(tmp_path, student_path)


def test_a_moving_average_beside_which_something_else_is_trained_is_refused(tmp_path):
    for bias in ("all", "lora_only"):
        with pytest.raises(ValueError, match=rf"bias='{bias}' with teacher_model_kind='ema'.*Set bias='none'"):
            build(tmp_path, tiny.build_model(), peft_config=lora_config(bias=bias), teacher_model_kind="ema")
    model, _ = unfrozen_norms()
    with pytest.raises(ValueError, match=r"norm.weight \(and \d+ more\) is trained beside the adapter"):
        build(tmp_path, model, teacher_model_kind="ema")
    assert not (tmp_path / "out").exists()


def test_a_reference_adapter_that_would_rewrite_the_base_again_is_refused(tmp_path, teacher_path):
    model = get_peft_model(tiny.build_model(), lora_config(init_lora_weights="olora"))
    options = {"processing_class": tiny.build_tokenizer()}
    with pytest.raises(ValueError, match=r"init_lora_weights='olora' with beta=0.1.*Set beta=0"):
        opd_trainer(tmp_path, model, teacher_path, beta=0.1, trainer_options=options)


def test_a_teacher_that_shares_weights_with_the_student_is_refused(tmp_path):
    model = tiny.build_model()
    options = {"processing_class": tiny.build_tokenizer()}
    for teacher, student in [(copy.copy(model), model), (model, get_peft_model(model, lora_config()))]:
        with pytest.raises(ValueError, match=r"shares weights with the student, e.g. .*Pass a copy"):
            opd_trainer(tmp_path, student, teacher, trainer_options=options)
