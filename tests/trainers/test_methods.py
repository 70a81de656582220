"""`method:` against the table of published settings, and what its losses are in a trainer."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM

from opd_trl import OPDConfig, OPSDConfig
from opd_trl.losses import support_divergence
from opd_trl.trainers.config.published_methods import METHODS
from tests import tiny
from tests.trainers.build import fixed_batch, lora_config, opd_trainer, opsd_trainer
from tests.trainers.test_loss import dense_log_probs


#: Loss, support, tail, K, teacher, as the publications have them; read off the papers, not off the code.
PUBLISHED = {
    "many_faces": {
        "divergence": "reverse_kl",
        "loss_support": "intersection",
        "loss_tail": "renormalize",
        "loss_top_k": 20,
        "stop_gradient": True,
        "teacher_model_kind": "base",
        "learning_rate": 2e-6,
        "top_p": 0.95,
    },
    "opsd": {
        "divergence": "forward_kl",
        "loss_support": "full",
        "loss_pointwise_clip": 0.05,
        "teacher_model_kind": "base",
        "temperature": 1.1,
    },
    "sdft": {
        "divergence": "reverse_kl",
        "loss_support": "full",
        "teacher_model_kind": "ema",
        "teacher_update_rate": 0.01,
        "num_loss_tokens_to_skip": 3,
        "loss_importance_cap": 2.0,
        "learning_rate": 2e-5,
    },
    "sdpo": {
        "divergence": "jsd",
        "divergence_beta": 0.5,
        "loss_support": "student",
        "loss_top_k": 100,
        "loss_tail": "bucket",
        "teacher_model_kind": "ema",
        "teacher_update_rate": 0.05,
        "loss_importance_cap": 2.0,
        "learning_rate": 1e-5,
    },
    "thinking_machines": {"loss_support": "sampled", "loss_baseline": None, "learning_rate": 1e-4},
    "rethinking": {"loss_support": "student", "loss_top_k": 16, "loss_tail": "reweight", "learning_rate": 1e-6},
    "revisiting": {"loss_support": "teacher", "loss_top_k": 32, "loss_tail": "renormalize", "top_p": 0.9},
    "vopd": {"loss_support": "sampled", "loss_baseline": "full", "learning_rate": 1e-5},
    "opcd": {
        "divergence": "reverse_kl",
        "loss_support": "student",
        "loss_top_k": 256,
        "loss_tail": "drop",
        "teacher_model_kind": "base",
        "privileged_builder": "system_prompt",
        "learning_rate": 5e-6,
    },
    "exopd": {"loss_support": "sampled", "loss_extrapolation": 1.25, "loss_importance_cap": 5.0},
    "tcod": {
        "loss_support": "sampled",
        "tool_depth_start": 1,
        "tool_depth_steps": 6,
        "max_tool_calling_iterations": 29,
        "learning_rate": 1e-6,
    },
    "gkd": {"divergence": "jsd", "divergence_beta": 0.5, "loss_support": "full", "lmbda": 1.0},
    "iw_opd": {"loss_support": "sampled", "loss_position_weight": "iw_opd", "loss_position_gamma": 0.5},
    "trust_region": {"loss_support": "sampled", "loss_position_weight": "trust_region"},
    "op2sd": {"shuffle_privileged_context": True, "privileged_builder": "solution", "teacher_model_kind": "base"},
    "rlsd": {"advantage_shaping": "rlsd", "rlsd_share": 0.5, "rlsd_clip": 0.2, "distillation_coef": 0.0},
    "sdar": {"advantage_shaping": "sdar", "sdar_coef": 0.1, "distillation_coef": 0.0},
    "esr": {"divergence": "reverse_kl", "rollout_length_start": 100, "rollout_length_end": 100},
    "popd": {"divergence": "reverse_kl", "rollout_length_start": 0.1, "rollout_length_end": None},
}
NAMES = list(PUBLISHED)


def build(name, config_class=OPSDConfig, **options):
    return config_class(output_dir="out", use_cpu=True, report_to="none", method=name, **options)


def test_the_table_holds_the_published_methods():
    assert list(METHODS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_method_sets_its_published_fields(name):
    config = build(name)
    assert {field: getattr(config, field) for field in PUBLISHED[name]} == PUBLISHED[name]
    assert METHODS[name].address.startswith("https://")


@pytest.mark.parametrize("name", NAMES)
def test_a_method_names_only_fields_of_the_configuration(name):
    config = build(name)
    assert {field: getattr(config, field) for field in METHODS[name].fields} == METHODS[name].fields


def test_a_field_given_by_hand_wins_even_at_its_default_and_the_log_says_so(caplog):
    default = OPDConfig(output_dir="out", use_cpu=True).loss_top_k
    with caplog.at_level(logging.WARNING):
        config = build("revisiting", OPDConfig, loss_top_k=default, learning_rate=1e-6)
    assert config.loss_top_k == default
    assert config.loss_support == "teacher"
    assert "given by hand and kept: loss_top_k=20 (published: 32)." in caplog.text
    assert "learning_rate" not in caplog.text  # it is the published one


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match=r"method='sdtf' is not one of the published methods .* did you mean sdft\?"):
        build("sdtf")


@pytest.mark.parametrize(("name", "config_class"), [("sdft", OPDConfig), ("vopd", OPSDConfig)])
def test_a_method_with_the_other_kind_of_teacher_says_so(name, config_class, caplog):
    build(name, config_class)
    assert "is published with" in caplog.text


def test_no_method_changes_nothing_and_says_nothing(caplog):
    build(None)
    assert caplog.text == ""


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains(tmp_path, student_path, teacher_path, name):
    options = {"method": name, "loss_top_k": 5, "learning_rate": 1e-2, "temperature": 1.0, "max_steps": 2}
    if METHODS[name].fields.get("advantage_shaping"):
        rewards = {"reward_funcs": lambda completions, **_: [float(i % 2) for i in range(len(completions))]}
        options |= {"num_generations": 2, "trainer_options": rewards}
    if METHODS[name].fields.get("shuffle_privileged_context"):
        options["dataset"] = tiny.questions(privileged_context=[f"Answer with {letter}." for letter in "abcdefgh"])
    if METHODS[name].teacher == "self":
        trainer = opsd_trainer(tmp_path, student_path, **options)
    else:
        trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    before = {key: value.clone() for key, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    assert any(not torch.equal(value, before[key]) for key, value in trainer.model.named_parameters() if key in before)
    assert all(torch.tensor(row["loss"]).isfinite() for row in trainer.state.log_history if "loss" in row)


@pytest.fixture(scope="module")
def reference_path(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("reference"), seed=5)


# The losses in a trainer, against the models' own logits


def at(log_probs, batch):
    return log_probs.gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)


def mean(values, batch):
    return (values * batch["completion_mask"]).sum() / batch["completion_mask"].sum()


def policy_loss(student, advantage, batch):
    return mean(-advantage.detach() * at(student, batch), batch)


def check(trainer, batch, expected):
    loss = trainer._compute_loss(trainer.model, batch)
    weight = (
        trainer.model.get_output_embeddings().weight
        if not hasattr(trainer.model, "peft_config")
        else next(parameter for name, parameter in trainer.model.named_parameters() if "lora_B.default" in name)
    )
    (gradient,) = torch.autograd.grad(loss, weight)
    (expected_gradient,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def student_of(trainer, batch):
    return dense_log_probs(trainer.model, batch["prompt_ids"], batch["prompt_mask"], batch)


def teacher_of(trainer, batch):
    return dense_log_probs(trainer.teacher.model, batch["prompt_ids"], batch["prompt_mask"], batch).detach()


@pytest.mark.parametrize("baseline", ["full", "top_k"])
def test_vopd_takes_the_reverse_kl_off_the_advantage(tmp_path, student_path, teacher_path, baseline):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, method="vopd", loss_baseline=baseline)
    batch = fixed_batch(trainer)
    student, teacher = student_of(trainer, batch), teacher_of(trainer, batch)
    if baseline == "full":
        kl = (student.exp() * (student - teacher)).sum(-1)
    else:
        ids = student.topk(5, dim=-1).indices
        kl = support_divergence(student.gather(-1, ids), teacher.gather(-1, ids))
    check(trainer, batch, policy_loss(student, at(teacher - student, batch) + kl, batch))


@pytest.mark.parametrize("kind", ["full fine-tuning from a path", "a model object", "LoRA", "a named reference"])
def test_exopd_goes_beyond_the_teacher_and_away_from_the_student_at_step_0(
    tmp_path, student_path, teacher_path, kind, reference_path
):
    options = {"method": "exopd", "trainer_options": {}}
    if kind == "LoRA":
        options["trainer_options"] = {"peft_config": lora_config()}
    if kind == "a named reference":
        options["reference_model_name_or_path"] = reference_path
    student = AutoModelForCausalLM.from_pretrained(student_path) if kind == "a model object" else student_path
    trainer = opd_trainer(tmp_path, student, teacher_path, **options)
    reference = AutoModelForCausalLM.from_pretrained(reference_path if kind == "a named reference" else student_path)
    torch.manual_seed(0)
    with torch.no_grad():  # the student moves, its reference stays
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    batch = fixed_batch(trainer)
    log_p, log_q = student_of(trainer, batch), teacher_of(trainer, batch)
    log_ref = dense_log_probs(reference, batch["prompt_ids"], batch["prompt_mask"], batch).detach()
    assert at(log_ref - log_p, batch).abs().max() > 0.01
    torch.testing.assert_close(
        batch["reference_logps"], at(log_ref, batch) * batch["completion_mask"], rtol=1e-4, atol=1e-5
    )
    advantage = -(at(log_p - log_ref, batch) - 1.25 * at(log_q - log_ref, batch))
    check(trainer, batch, policy_loss(log_p, advantage, batch))


def test_completions_that_feed_several_steps_are_weighted_by_how_far_the_student_moved(
    tmp_path, student_path, teacher_path
):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, loss_importance_cap=1.2, steps_per_generation=2)
    batch = fixed_batch(trainer)
    at_sampling = at(student_of(trainer, batch), batch).detach()
    torch.testing.assert_close(batch["sampling_logps"], at_sampling * batch["completion_mask"], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        trainer.model.lm_head.weight.add_(0.05 * torch.randn_like(trainer.model.lm_head.weight))
    log_p, log_q = student_of(trainer, batch), teacher_of(trainer, batch)
    ids = log_p.topk(5, dim=-1).indices
    values = support_divergence(log_p.gather(-1, ids), log_q.gather(-1, ids))
    weights = (at(log_p, batch).detach() - at_sampling).exp().clamp(max=1.2)
    assert (weights == 1.2).any()
    assert (weights < 1.1).any()
    # half of the kept tokens of a generation batch that feeds two steps
    check(trainer, batch, mean(values * weights, batch) * 2)


def test_without_a_second_step_no_forward_is_spent_on_weights(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, loss_importance_cap=2.0)
    assert "sampling_logps" not in fixed_batch(trainer)


def test_the_first_place_of_a_skipped_text_is_left_out_and_no_other(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, loss_skip_first=["b", "c"], max_completion_length=30)
    batch = fixed_batch(trainer)
    skipped = {trainer.processing_class.encode(text)[0] for text in ("b", "c")}
    for ids, kept, mask in zip(batch["completion_ids"], batch["completion_mask"], batch["loss_mask"], strict=True):
        seen = set()
        for token, written, counts in zip(ids.tolist(), kept.tolist(), mask.tolist(), strict=True):
            first = token in skipped and token not in seen
            seen.add(token)
            assert counts == (written and not first)
    assert (batch["loss_mask"] != batch["completion_mask"]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_baseline": "full"}, "loss_baseline='full' changes the advantage of a sampled token"),
        ({"loss_baseline": "half"}, "loss_baseline must be one of None, full, top_k"),
        ({"loss_extrapolation": 1.25}, r"loss_extrapolation=1.25 changes the advantage .* Set loss_support='sampled'"),
        ({"loss_extrapolation": 0.0, "loss_support": "sampled"}, "loss_extrapolation must be > 0, got 0.0"),
        ({"reference_model_name_or_path": "x"}, "used by loss_extrapolation alone, which is 1"),
        ({"loss_importance_cap": 0.0}, "loss_importance_cap must be > 0"),
        ({"loss_importance_cap": 2.0, "loss_temperature": 0.7}, "Leave loss_temperature unset"),
        ({"loss_pointwise_clip": 0.05, "loss_support": "sampled"}, "has one log-ratio"),
        ({"loss_pointwise_clip": -1.0}, "loss_pointwise_clip must be > 0"),
        ({"loss_tail": "reweight", "divergence": "jsd"}, "needs divergence='reverse_kl' with stop_gradient=True"),
        (
            {"loss_support": "sampled", "loss_baseline": "top_k", "loss_top_k": 1},
            "one token has the whole renormalised mass",
        ),
    ],
)
def test_an_impossible_combination_is_refused_with_the_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        OPDConfig(output_dir="out", use_cpu=True, **options)
