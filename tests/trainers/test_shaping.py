"""The advantage of the policy loss, shaped by the teacher: gradients of a trainer against the dense formula."""

import pytest
import torch

from opd_trl import OPDConfig
from opd_trl.losses.advantages import rlsd, sdar
from opd_trl.losses.token_weights import SampledText
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, opsd_trainer
from tests.trainers.test_loss import dense_log_probs
from tests.trainers.test_token_weights import at, both


def rewards(completions, **_):
    """Of two completions of a prompt the first is right; of the second prompt's, the second."""
    return [1.0, 0.0, 0.0, 1.0] * (len(completions) // 4)


def build(tmp_path, student_path, teacher, **options):
    options = {"num_generations": 2, "distillation_coef": 0.0, "trainer_options": {"reward_funcs": rewards}} | options
    return opd_trainer(tmp_path, student_path, teacher, **options)


def policy_gradient(trainer, batch, log_p, advantage):
    """Of -mean_t A_t log p_t: dapo's loss while the student is the one that sampled."""
    loss = -(advantage.detach() * at(log_p, batch) * batch["completion_mask"]).sum() / batch["completion_mask"].sum()
    return torch.autograd.grad(loss, trainer.model.lm_head.weight, retain_graph=True)[0]


def gradient(trainer, batch):
    return torch.autograd.grad(trainer._compute_loss(trainer.model, batch), trainer.model.lm_head.weight)[0]


def test_rlsd_keeps_the_sign_of_the_reward_and_takes_the_size_from_the_teacher(tmp_path, student_path, teacher_path):
    trainer = build(tmp_path, student_path, teacher_path, advantage_shaping="rlsd", rlsd_share=0.7, rlsd_clip=0.1)
    batch = fixed_batch(trainer)
    log_p, log_q = both(trainer, trainer.teacher.model, batch)
    a, advantage = at(log_q - log_p, batch).detach(), batch["advantages"].unsqueeze(-1)
    shaped = advantage * (0.3 + 0.7 * (advantage.sign() * a).exp().clamp(0.9, 1.1))
    expected = policy_gradient(trainer, batch, log_p, shaped)
    torch.testing.assert_close(gradient(trainer, batch), expected, rtol=1e-4, atol=1e-6)
    assert (expected - policy_gradient(trainer, batch, log_p, advantage)).abs().max() > 1e-4
    kept = batch["loss_mask"].bool()
    logged = trainer._metrics["train"]["policy/shaped_by"][0]
    assert logged == pytest.approx((shaped - advantage).abs()[kept].mean().item(), rel=1e-4)


def test_sdars_advantage_has_the_gradient_of_its_published_loss(tmp_path, student_path, teacher_path):
    """L_GRPO + c mean sg(sigmoid(5 a)) a, with the gradient through log p in a."""
    trainer = build(tmp_path, student_path, teacher_path, advantage_shaping="sdar", sdar_coef=0.3)
    batch = fixed_batch(trainer)
    log_p, log_q = both(trainer, trainer.teacher.model, batch)
    a, mask = at(log_q - log_p, batch), batch["completion_mask"]
    gated = 0.3 * (torch.sigmoid(5 * a.detach()) * a * mask).sum() / mask.sum()
    grpo = policy_gradient(trainer, batch, log_p, batch["advantages"].unsqueeze(-1))
    expected = grpo + torch.autograd.grad(gated, trainer.model.lm_head.weight)[0]
    torch.testing.assert_close(gradient(trainer, batch), expected, rtol=1e-4, atol=1e-6)


def test_sdar_only_ever_raises_sampled_tokens_and_does_not_rest_at_its_teacher():
    text = SampledText(torch.linspace(-30, 30, 61).unsqueeze(0).double(), torch.ones(1, 61).bool())
    added = sdar(torch.zeros(1, 1).double(), text, coef=0.1)
    assert (added > 0).all()
    assert added[0, 30] == pytest.approx(0.05)  # a = 0: student and teacher agree


@pytest.mark.parametrize("advantage", [2.0, -0.5, 0.0])
def test_rlsd_never_changes_the_sign_and_stays_within_its_share(advantage):
    text = SampledText(torch.randn(3, 50).double() * 20, torch.rand(3, 50) < 0.8)
    shaped = rlsd(torch.full((3, 1), advantage).double(), text, share=0.5, clip=0.2)
    assert (shaped.sign() == torch.tensor(advantage).sign()).all()
    assert ((shaped - advantage).abs() <= 0.1 * abs(advantage) + 1e-12).all()
    assert (shaped[~text.kept] == advantage).all()
    assert (rlsd(torch.full((3, 1), advantage).double(), text, share=0.0) == advantage).all()


def test_a_token_without_distillation_keeps_its_advantage(tmp_path, student_path, teacher_path):
    options = {"advantage_shaping": "sdar", "sdar_coef": 5.0, "num_loss_tokens_to_skip": 100}
    trainer = build(tmp_path, student_path, teacher_path, **options)
    batch = fixed_batch(trainer)
    log_p, _ = both(trainer, trainer.teacher.model, batch)
    expected = policy_gradient(trainer, batch, log_p, batch["advantages"].unsqueeze(-1))
    torch.testing.assert_close(gradient(trainer, batch), expected, rtol=1e-4, atol=1e-6)


def test_each_completion_is_shaped_by_its_own_teacher(tmp_path, student_path, teacher_path):
    dataset = tiny.questions().add_column("teacher", ["one", "two"] * (len(tiny.questions()) // 2))
    teachers = {"one": teacher_path, "two": tiny.save(tmp_path / "other", seed=7)}
    trainer = build(tmp_path, student_path, teachers, dataset=dataset, advantage_shaping="rlsd")
    rows = [trainer.train_dataset[i] for i in (0, 0, 1, 1)]
    batch = fixed_batch(trainer, rows)
    log_p, first = both(trainer, trainer.teachers["one"].model, batch)
    _, second = both(trainer, trainer.teachers["two"].model, batch)
    log_q = torch.where(batch["teacher_index"][:, None, None] == 0, first, second)
    shaped = rlsd(
        batch["advantages"].unsqueeze(-1),
        SampledText(at(log_q - log_p, batch).detach(), torch.ones_like(batch["completion_ids"]).bool()),
    )
    expected = policy_gradient(trainer, batch, log_p, shaped)
    torch.testing.assert_close(gradient(trainer, batch), expected, rtol=1e-4, atol=1e-6)


def test_rlsd_reads_the_students_own_model_with_its_context(tmp_path, student_path):
    options = {"method": "rlsd", "num_generations": 2, "policy_coef": 2.0}
    trainer = opsd_trainer(tmp_path, student_path, lora=False, trainer_options={"reward_funcs": rewards}, **options)
    batch = fixed_batch(trainer)
    log_p = dense_log_probs(trainer.model, batch["prompt_ids"], batch["prompt_mask"], batch)
    teacher = trainer.teacher.module(trainer.model)
    log_q = dense_log_probs(teacher, batch["teacher_prompt_ids"], batch["teacher_prompt_mask"], batch)
    text = SampledText(at(log_q - log_p, batch).detach(), batch["completion_mask"].bool())
    expected = policy_gradient(trainer, batch, log_p, 2 * rlsd(batch["advantages"].unsqueeze(-1), text))
    torch.testing.assert_close(gradient(trainer, batch), expected, rtol=1e-4, atol=1e-6)


def test_without_rewards_there_is_no_advantage_to_shape(tmp_path, student_path, teacher_path):
    with pytest.raises(ValueError, match=r"advantage_shaping='rlsd' shapes the advantage that rewards give"):
        build(tmp_path, student_path, teacher_path, advantage_shaping="rlsd", trainer_options={})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage_shaping": "rlsd"}, r"num_generations is 1: a group of one has none. Set num_generations: 8"),
        ({"advantage_shaping": "rlds"}, "advantage_shaping must be one of None, rlsd, sdar, got 'rlds'"),
        ({"rlsd_share": 1.5}, r"rlsd_share must lie in \[0, 1\], got 1.5"),
        ({"rlsd_clip": -0.1}, r"rlsd_clip must lie in \[0, 1\]"),
        ({"sdar_coef": -1.0}, "sdar_coef must be >= 0"),
    ],
)
def test_an_impossible_shape_is_refused_with_the_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        OPDConfig(output_dir="out", use_cpu=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rlsd_share": 0.7}, "advantage_shaping: rlsd"),
        ({"sdar_coef": 0.7}, "advantage_shaping: sdar"),
        ({"advantage_shaping": "rlsd", "num_generations": 2, "policy_coef": 0.0}, "a policy_coef above 0"),
    ],
)
def test_what_nothing_reads_is_said(options, message, caplog):
    OPDConfig(output_dir="out", use_cpu=True, **options)
    assert f"has no effect here. It needs {message}." in caplog.text
