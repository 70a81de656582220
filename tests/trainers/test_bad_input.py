"""Every input that cannot work: an error that says what was given, what was expected, what to do; nothing written."""

import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PromptTuningConfig, get_peft_model

from opd_trl import OPDConfig, OPDTrainer, OPSDConfig
from opd_trl.losses import support_divergence
from opd_trl.losses.divergences import DIVERGENCES
from opd_trl.trainers.config.loss_checks import tail_bias
from tests import tiny
from tests.trainers.build import lora_config, opd_trainer, opsd_trainer, settings


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path):
    yield
    assert not (tmp_path / "out").exists()


def test_a_missing_privileged_context_column(tmp_path, student_path):
    with pytest.raises(
        ValueError, match=r"no column 'privileged_context', it has 'prompt'.*privileged_context_column"
    ):
        opsd_trainer(tmp_path, student_path, dataset=tiny.questions())


@pytest.mark.parametrize("empty", [None, "", " \n"])
def test_an_empty_privileged_context_in_one_row(tmp_path, student_path, empty):
    dataset = tiny.questions(4, privileged_context=["a", "b", empty, "d"])
    with pytest.raises(ValueError, match="is empty in row 2 of the train set"):
        opsd_trainer(tmp_path, student_path, dataset=dataset)


def test_an_empty_privileged_context_in_the_evaluation_set(tmp_path, student_path):
    with pytest.raises(ValueError, match="is empty in row 1 of the eval set"):
        opsd_trainer(
            tmp_path, student_path, trainer_options={"eval_dataset": tiny.questions(2, privileged_context=["a", ""])}
        )


def test_both_a_column_and_a_shared_text(tmp_path, student_path):
    with pytest.raises(ValueError, match="has a column 'privileged_context' and a shared privileged context"):
        opsd_trainer(tmp_path, student_path, privileged_context="Be b.")


def test_a_shared_text_given_twice(tmp_path):
    with pytest.raises(ValueError, match="privileged_context and privileged_context_file are both set"):
        OPDConfig(**settings(tmp_path, privileged_context="a", privileged_context_file="b"))


def test_a_separate_teacher_in_self_distillation(tmp_path, student_path, teacher_path):
    with pytest.raises(ValueError, match=r"teacher_model_kind='base': in OPSD the teacher is the student.*OPDTrainer"):
        OPSDConfig(**settings(tmp_path, teacher_model_name_or_path=teacher_path))
    with pytest.raises(ValueError, match=r"teacher_model together with teacher_model_kind.*OPDTrainer"):
        opsd_trainer(tmp_path, student_path, trainer_options={"teacher_model": teacher_path})


def test_no_teacher_or_the_student_as_its_own_teacher(tmp_path, student_path):
    with pytest.raises(ValueError, match=r"needs a teacher: pass teacher_model.*OPSDTrainer"):
        opd_trainer(tmp_path, student_path, None)
    model = tiny.build_model()
    with pytest.raises(ValueError, match="the student object itself"):
        opd_trainer(tmp_path, model, model, trainer_options={"processing_class": tiny.build_tokenizer()})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss_top_k": 0}, "loss_top_k must be >= 1, got 0. Use loss_support='full'"),
        ({"loss_top_k": 1}, "identically zero.*loss_support='sampled'"),
        ({"divergence": "rkl"}, "divergence must be one of reverse_kl, forward_kl, jsd, mixed.*, got 'rkl'"),
        ({"loss_support": "top"}, "loss_support must be one of"),
        ({"loss_tail": "keep"}, "loss_tail must be one of"),
        ({"divergence_beta": 1.5}, r"divergence_beta must lie in \[0, 1\]"),
        ({"loss_temperature": 0.0}, "loss_temperature must be > 0"),
        ({"num_loss_tokens_to_skip": -1}, "num_loss_tokens_to_skip must be >= 0"),
        ({"max_teacher_prompt_length": 0}, "max_teacher_prompt_length must be >= 1"),
        ({"teacher_batch_size": 0}, "teacher_batch_size must be >= 1, got 0"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens must be >= 1, got 0"),
        ({"teacher_offload": "disk"}, "teacher_offload must be one of None, cpu, got 'disk'"),
        ({"distillation_gate": "wrong"}, "distillation_gate must be one of None, correct, incorrect, got 'wrong'"),
        ({"distillation_coef_schedule": "cosine"}, "distillation_coef_schedule must be one of constant, linear"),
        ({"distillation_coef_end": -1.0}, "distillation_coef_end must be >= 0, got -1.0"),
        ({"loss_memory_mib": 0}, "loss_memory_mib must be >= 1, got 0"),
        ({"teacher_model_kind": "frozen"}, "teacher_model_kind must be one of base, live, ema"),
        ({"teacher_update_rate": 0.0}, "teacher_update_rate must lie in"),
        ({"teacher_sync_steps": 0}, "teacher_sync_steps must be >= 1"),
    ],
)
def test_options_that_cannot_work(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        OPSDConfig(**settings(tmp_path, **options))


def test_a_support_larger_than_the_vocabulary(tmp_path, student_path, teacher_path):
    with pytest.raises(ValueError, match="loss_top_k must be at most the vocabulary of 103, got 104"):
        opd_trainer(tmp_path, student_path, teacher_path, loss_top_k=104)


def test_one_token_of_a_renormalised_union_is_allowed(tmp_path):
    assert OPDConfig(**settings(tmp_path, loss_top_k=1, loss_support="union")).loss_top_k == 1


def test_the_biased_form_is_allowed_with_a_warning_that_cites_the_bias(tmp_path):
    with pytest.warns(UserWarning, match=r"stationary at p = q/e.*2605.11182"):
        OPDConfig(**settings(tmp_path, stop_gradient=False, loss_tail="drop"))
    for options in ({"loss_tail": "bucket"}, {"loss_tail": "drop", "loss_support": "full"}, {"divergence": "jsd"}):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*biased.*")
            OPDConfig(**settings(tmp_path, stop_gradient=False, **options))


def test_a_forward_kl_without_its_tail_is_allowed_with_a_warning_that_names_the_bucket(tmp_path):
    with pytest.warns(UserWarning, match=r"stationary at p = q / q\(S\).*loss_tail='bucket'"):
        OPDConfig(**settings(tmp_path, divergence="forward_kl", loss_tail="drop"))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_warning_of_bias_comes_where_the_gradient_itself_has_one(tmp_path, divergence, beta, stop_gradient):
    loss = {"divergence": divergence, "stop_gradient": stop_gradient, "loss_tail": "drop"}
    config = OPDConfig(**settings(tmp_path, divergence_beta=beta, **loss))
    torch.manual_seed(0)
    logits = torch.randn(4, 12, requires_grad=True)
    student = logits.log_softmax(-1)
    ids = student.topk(5, dim=-1).indices
    value = support_divergence(
        student.gather(-1, ids),
        student.detach().gather(-1, ids),
        divergence=divergence,
        beta=beta,
        tail="drop",
        stop_gradient=stop_gradient,
    )
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    p = student.detach().exp()
    on = torch.zeros_like(p).scatter_(-1, ids, 1.0)
    expected = tail_bias(config) * p * (on - (p * on).sum(-1, keepdim=True))
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


def test_different_tokenizers(tmp_path, student_path):
    other = tiny.build_model(seed=1)
    assert len(tiny.build_tokenizer()) == other.config.vocab_size  # equal width, other ids
    swapped = tiny.build_tokenizer(reverse=True)
    with pytest.raises(ValueError, match=r"different vocabularies: \d+ tokens differ"):
        opd_trainer(tmp_path, student_path, other, trainer_options={"teacher_processing_class": swapped})
    with pytest.raises(ValueError, match=r"no path to load its tokenizer.*teacher_processing_class"):
        opd_trainer(tmp_path, student_path, tiny.build_model(vocab_size=120))


def test_a_tokenizer_without_a_token_that_ends_an_answer(tmp_path, student_path, teacher_path):
    tokenizer = tiny.build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"the tokenizer has no EOS token.*tokenizer\.eos_token = "):
        opd_trainer(tmp_path, student_path, teacher_path, trainer_options={"processing_class": tokenizer})


def test_an_empty_data_set_and_one_without_prompts(tmp_path, student_path, teacher_path):
    with pytest.raises(ValueError, match="the train set is empty"):
        opd_trainer(tmp_path, student_path, teacher_path, dataset=tiny.questions(1).select([]))
    with pytest.raises(ValueError, match="no column 'prompt', it has 'question'"):
        opd_trainer(tmp_path, student_path, teacher_path, dataset=Dataset.from_dict({"question": ["a"]}))


def test_adapters_that_scoring_would_ignore(tmp_path, student_path):
    virtual = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    head = lora_config(target_modules=["q_proj", "lm_head"])
    for config, match in [(virtual, "prompt-learning adapter"), (head, "adapter on `lm_head` would be ignored")]:
        with pytest.raises(ValueError, match=match):
            opsd_trainer(tmp_path, student_path, trainer_options={"peft_config": config})
    wrapped = get_peft_model(tiny.build_model(), virtual)
    with pytest.raises(ValueError, match="prompt-learning adapter"):
        opsd_trainer(tmp_path, wrapped, lora=False, trainer_options={"processing_class": tiny.build_tokenizer()})


def test_arguments_of_another_trainer(tmp_path, student_path, teacher_path):
    from trl import GRPOConfig

    args = GRPOConfig(str(tmp_path / "out"), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match="args must be of class OPDConfig, got GRPOConfig"):
        OPDTrainer(model=student_path, teacher_model=teacher_path, args=args, train_dataset=tiny.questions())


def test_several_gpus_without_a_launcher(tmp_path, student_path, teacher_path, monkeypatch):
    """TRL refuses it; no GPU here, so the count is set where transformers keeps it."""
    monkeypatch.setattr(OPDConfig, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match=r"OPDTrainer does not support `nn.DataParallel`.*accelerate launch"):
        opd_trainer(tmp_path, student_path, teacher_path)
    Path(tmp_path / "out").rmdir()  # transformers makes the empty folder before TRL looks


def test_an_over_long_teacher_prompt_names_row_and_length_before_training(tmp_path, student_path):
    contexts = ["b", "b" * 300, "b", "b"]
    with pytest.raises(ValueError, match=r"row 1 of the train set has 3\d\d tokens, at most 100 fit"):
        opsd_trainer(
            tmp_path,
            student_path,
            dataset=tiny.questions(4, privileged_context=contexts),
            max_teacher_prompt_length=100,
        )
    Path(tmp_path / "out").rmdir()  # transformers makes the empty folder; nothing is in it


def test_a_teacher_prompt_beyond_the_context_window_stops_instead_of_being_cut(tmp_path, student_path):
    dataset = tiny.questions(4, privileged_context=["b", "b" * 600, "b", "b"])
    with pytest.raises(ValueError, match=r"row 1 of the train set has 6\d\d tokens, at most 504 fit"):
        opsd_trainer(tmp_path, student_path, dataset=dataset)
    Path(tmp_path / "out").rmdir()


def test_rewards_with_one_generation_warn_that_they_teach_nothing(tmp_path, student_path, teacher_path, caplog):
    opd_trainer(tmp_path, student_path, teacher_path, trainer_options={"reward_funcs": lambda completions, **_: [0.0]})
    assert "num_generations >= 2" in caplog.text
    Path(tmp_path / "out").rmdir()
