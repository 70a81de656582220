"""The check at start: our logits against the model's own, adapters on heads, padded rows, models that read ahead."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from opd_trl.losses.head import LogitTransform
from opd_trl.models import own_forward
from opd_trl.models.agreement import check_agreement, check_head, fold_head
from tests import tiny
from tests.trainers.build import lora_config, opd_trainer, opsd_trainer


IDS = [5, 9, 17, 4, 30, 22, 8, 51]


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=103, eos_token_id=2, bos_token_id=1, pad_token_id=0, **sizes)).eval()


@pytest.mark.parametrize("build", [tiny.build_model, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_is_read_as_it_computes_passes(build, dtype):
    check_agreement(build().eval().to(dtype), IDS, 103, pad_id=0)


@pytest.mark.parametrize("wrong", [{"logit_scale": 1.2}, {"final_logit_softcapping": 2.0}])
def test_logits_that_are_read_wrong_are_refused_with_the_size_of_the_difference(wrong, monkeypatch):
    model = tiny.build_model().eval()
    monkeypatch.setitem(own_forward.TRANSFORMS, model, LogitTransform(**wrong))
    with pytest.raises(
        ValueError, match=r"qwen3 \(Qwen3ForCausalLM\): the loss would read other logits .* by up to \d"
    ):
        check_agreement(model, IDS, 103, pad_id=0)


def test_absolute_positions_that_count_padding_are_refused(monkeypatch):
    """Where rows are not turned, a learned position belongs to another token."""
    monkeypatch.setattr("opd_trl.models.forward.left_padding", lambda mask: torch.zeros(len(mask), 1, dtype=int))
    with pytest.raises(ValueError, match=r"gpt2 \(GPT2LMHeadModel\): a row's logits depend on"):
        check_agreement(gpt2(), IDS, 103, pad_id=0)


def test_a_model_that_reads_ahead_is_refused():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=103, max_position_embeddings=64, initializer_range=0.2, **sizes)
    with pytest.raises(ValueError, match=r"bert \(BertLMHeadModel\): a row's logits depend on .* is_decoder"):
        check_agreement(BertLMHeadModel(bert).eval(), IDS, 103, pad_id=0)
    bert.is_decoder = True
    check_agreement(BertLMHeadModel(bert).eval(), IDS, 103, pad_id=0)


def test_rows_of_the_head_that_are_no_tokens_are_refused():
    class Padded(type(tiny.build_model())):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits[..., :100]
            return outputs

    model = tiny.build_model().eval()
    model.__class__ = Padded
    check_agreement(model, IDS, 100, pad_id=0)
    with pytest.raises(ValueError, match="gives logits of 100 tokens and the loss would compare 103 rows"):
        check_agreement(model, IDS, 103, pad_id=0)


@pytest.mark.parametrize("options", [{"target_modules": r".*(q_proj|lm_head)"}, {"trainable_token_indices": [7]}])
def test_an_adapter_on_the_students_head_is_refused_however_it_came_there(options):
    """It has not been trained, so that no logit shows it."""
    model = get_peft_model(tiny.build_model(), LoraConfig(**{"r": 4, "target_modules": ["q_proj"]} | options))
    with pytest.raises(ValueError, match=r"adapter on the LM head would be ignored \(.*\): .*modules_to_save"):
        check_head(model)


def test_a_whole_head_beside_an_adapter_passes():
    options = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    check_head(get_peft_model(tiny.build_model(tie_word_embeddings=False), LoraConfig(**options)))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_on_a_teachers_head_becomes_part_of_its_weight(dora):
    teacher = tiny.build_model(seed=1)
    teacher = get_peft_model(teacher, LoraConfig(r=4, target_modules=["q_proj", "lm_head"], use_dora=dora)).eval()
    for name, parameter in teacher.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    teacher.requires_grad_(False)
    before = teacher(input_ids=torch.tensor([IDS])).logits
    with pytest.raises(ValueError, match="would be ignored"):
        check_head(teacher)
    fold_head(teacher)
    torch.testing.assert_close(teacher(input_ids=torch.tensor([IDS])).logits, before, rtol=1e-4, atol=1e-4)
    check_agreement(teacher, IDS, 103, pad_id=0)


def test_the_check_changes_neither_random_state_nor_modes(tmp_path, teacher_path, monkeypatch):
    student = tiny.build_model(attention_dropout=0.5)
    options = {"processing_class": tiny.build_tokenizer()}
    states = {}
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr("opd_trl.teachers.own_logits.prepare_student", lambda trainer: None)
            monkeypatch.setattr("opd_trl.teachers.own_logits.check_agreement", lambda *_, **__: None)
        trainer = opd_trainer(tmp_path, student, teacher_path, trainer_options=options)
        modes = [x.training for x in trainer.model.modules()]
        states[checked] = (torch.get_rng_state().tolist(), modes, trainer.model.lm_head.weight.requires_grad)
    assert states[True] == states[False]


def test_the_trainers_check_student_and_teacher_before_the_first_step(tmp_path, student_path, teacher_path):
    class Odd(type(tiny.build_model())):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits**3
            return outputs

    odd = tiny.build_model(seed=1)
    odd.__class__ = Odd
    options = {"processing_class": tiny.build_tokenizer()}
    for student, teacher in ((odd, teacher_path), (student_path, odd)):
        with pytest.raises(ValueError, match=r"qwen3 \(Odd\) does more to its logits"):
            opd_trainer(
                tmp_path,
                student,
                teacher,
                trainer_options=options | {"teacher_processing_class": tiny.build_tokenizer()},
            )
    head = lora_config(target_modules=["q_proj"], trainable_token_indices=[7])
    with pytest.raises(ValueError, match="adapter on the LM head would be ignored"):
        opsd_trainer(tmp_path, student_path, trainer_options={"peft_config": head})
    assert not list((tmp_path / "out").glob("*"))
