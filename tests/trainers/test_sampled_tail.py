"""`loss_tail: sample` in the trainers: the numbers of both models' own logits, and what it refuses."""

import warnings

import pytest
import torch

from opd_trl import OPDConfig
from opd_trl.diagnostics import TextKind
from opd_trl.losses import sampled_tail_divergence, select_support
from opd_trl.losses.support import TOP_K_SUPPORTS
from opd_trl.trainers.generation.plans import KIND
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer
from tests.trainers.test_loss import dense_log_probs
from tests.trainers.test_methods import at, check, mean


def log_probs_of(trainer, batch, temperature=1.0):
    """Log p and log q `[B, T, V]`, from the models' own logits."""
    reading = batch["prompt_ids"], batch["prompt_mask"], batch, temperature
    return dense_log_probs(trainer.model, *reading), dense_log_probs(trainer.teacher.model, *reading).detach()


def values(log_p, log_q, batch, *, support="student", weight=1.0):
    """Per token `(B, T)`; `weight` of the sampled term where the token is outside of the support."""
    ids, mask = select_support(log_p, log_q, top_k=5, support=support)
    outside = ~((ids == batch["completion_ids"].unsqueeze(-1)) & mask).any(-1)
    assert outside[batch["completion_mask"].bool()].any()
    return sampled_tail_divergence(
        log_p.gather(-1, ids), log_q.gather(-1, ids), at(log_p, batch), at(log_q, batch),
        tail_weight=outside * weight, support_mask=mask,
    )  # fmt: skip


@pytest.mark.parametrize("support", TOP_K_SUPPORTS)
def test_the_loss_is_that_of_both_models_own_logits(tmp_path, student_path, teacher_path, support):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, loss_tail="sample", loss_support=support)
    batch = fixed_batch(trainer)
    log_p, log_q = log_probs_of(trainer, batch)
    assert "sampling_logps" not in batch  # no forward is spent on weights
    check(trainer, batch, mean(values(log_p, log_q, batch, support=support), batch))


def test_another_temperature_than_that_of_sampling_weighs_the_sampled_term(tmp_path, student_path, teacher_path):
    options = {"loss_tail": "sample", "temperature": 1.4, "loss_temperature": 0.8, "loss_importance_cap": 3.0}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    batch = fixed_batch(trainer)
    at_sampling = at(log_probs_of(trainer, batch, 1.4)[0], batch).detach()
    torch.testing.assert_close(batch["sampling_logps"], at_sampling * batch["completion_mask"], rtol=1e-4, atol=1e-5)
    log_p, log_q = log_probs_of(trainer, batch, 0.8)
    weight = (at(log_p, batch).detach() - at_sampling).exp()
    assert (weight - 1).abs().max() > 0.3
    check(trainer, batch, mean(values(log_p, log_q, batch, weight=weight.clamp(max=3.0)), batch))


def test_reused_generations_weigh_the_sampled_term_alone(tmp_path, student_path, teacher_path):
    options = {"loss_tail": "sample", "loss_importance_cap": 1.2, "steps_per_generation": 2}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    batch = fixed_batch(trainer)
    with torch.no_grad():
        trainer.model.lm_head.weight.add_(0.05 * torch.randn_like(trainer.model.lm_head.weight))
    log_p, log_q = log_probs_of(trainer, batch)
    weight = (at(log_p, batch).detach() - batch["sampling_logps"]).exp().clamp(max=1.2)
    # half of the kept tokens of a generation batch that feeds two steps
    check(trainer, batch, mean(values(log_p, log_q, batch, weight=weight), batch) * 2)


def test_text_that_the_student_did_not_write_has_no_sampled_term(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, loss_tail="sample")
    batch = fixed_batch(trainer)
    batch[KIND] = torch.tensor(TextKind.GIVEN.value)
    log_p, log_q = log_probs_of(trainer, batch)
    check(trainer, batch, mean(values(log_p, log_q, batch, weight=0.0), batch))


def test_a_mean_of_teachers_is_one_teacher_to_it(tmp_path, student_path, teacher_path):
    teachers = {"math": teacher_path, "code": tiny.build_model(seed=3)}
    trainer = opd_trainer(tmp_path, student_path, teachers, teacher_mix={"math": 0.7, "code": 0.3}, loss_tail="sample")
    batch = fixed_batch(trainer)
    reading = batch["prompt_ids"], batch["prompt_mask"], batch
    log_p = dense_log_probs(trainer.model, *reading)
    parts = [dense_log_probs(x.model, *reading).exp() for x in trainer.teacher.parts]
    log_q = (0.7 * parts[0] + 0.3 * parts[1]).log().detach()
    check(trainer, batch, mean(values(log_p, log_q, batch), batch))


def test_a_teacher_that_shares_a_part_of_the_vocabulary_trains_it(tmp_path, student_path):
    teacher = tiny.save(tmp_path / "teacher", tokenizer=tiny.build_tokenizer(swap=("x", "y")), seed=1)
    trainer = opd_trainer(tmp_path, student_path, teacher, teacher_vocabulary="shared", loss_tail="sample")
    batch = fixed_batch(trainer)
    batch["loss_mask"] = batch["loss_mask"] * ~torch.isin(batch["completion_ids"], trainer.shared_ids.excluded)
    log_p, log_q = (x.index_fill(-1, trainer.shared_ids.excluded, -1e30) for x in log_probs_of(trainer, batch))
    log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
    kept = batch["loss_mask"].bool()
    check(trainer, batch, values(log_p, log_q, batch)[kept].sum() / batch["num_loss_tokens"])


def test_a_run_logs_the_estimate_of_the_reverse_kl(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, loss_tail="sample", max_steps=3)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    for line in lines:
        assert line["loss"] == pytest.approx(line["distillation/per_token_divergence"], abs=1e-4)


REFUSED = [
    ({"loss_support": "full"}, "loss_tail='sample': it completes a TopK support, and the support 'full' has no tail"),
    ({"loss_support": "sampled"}, "the support 'sampled' has no tail. Leave the tail out"),
    ({"divergence": "forward_kl"}, "the tail of the forward_kl is a mean over the teacher's tokens too"),
    ({"divergence": "jsd"}, "Use the tail 'bucket', or reverse_kl"),
    ({"divergence": "mixed"}, "the tail of the mixed is a mean"),
    ({"stop_gradient": False}, "Set stop_gradient to true"),
    ({"loss_pointwise_clip": 0.05}, "Leave the clip out"),
    ({"loss_baseline": "full"}, "loss_baseline='full' changes the advantage of a sampled token"),
    ({"loss_extrapolation": 1.25}, "loss_extrapolation=1.25 changes the advantage"),
    ({"top_p": 0.95}, r"top_p=0.95 changes what is drawn: .*Leave top_p out, or set loss_tail: bucket"),
    ({"top_k": 50}, "top_k=50 changes what is drawn"),
    ({"min_p": 0.1}, "min_p=0.1 changes what is drawn"),
    ({"repetition_penalty": 1.1}, "repetition_penalty=1.1 changes what is drawn"),
    ({"generation_kwargs": {"top_p": 0.9}}, "generation_kwargs: top_p=0.9 changes what is drawn.*Leave top_p out"),
    ({"loss_temperature": 0.7}, "the sampled token needs the weight of both. Set loss_importance_cap"),
    ({"method": "many_faces"}, "top_p=0.95 changes what is drawn"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_what_it_cannot_be_right_for_is_refused_with_the_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        OPDConfig(output_dir="out", use_cpu=True, loss_tail="sample", **options)


@pytest.mark.parametrize("options", [{"num_iterations": 2}, {"steps_per_generation": 2}], ids=str)
def test_reused_generations_without_weights_are_warned_of(options):
    with pytest.warns(UserWarning, match=r"those of an older student.*Set loss_importance_cap"):
        OPDConfig(output_dir="out", use_cpu=True, loss_tail="sample", **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*older student.*")
        OPDConfig(output_dir="out", use_cpu=True, loss_tail="sample", loss_importance_cap=2.0, **options)


def test_a_sampler_that_takes_nothing_away_is_allowed():
    options = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "generation_kwargs": {"stop_strings": ["."]}}
    assert OPDConfig(output_dir="out", use_cpu=True, loss_tail="sample", **options).loss_tail == "sample"
