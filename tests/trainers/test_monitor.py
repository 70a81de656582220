"""The monitor inside a trainer: figures in the log, files of the run, warnings, stopping, going on."""

import json
import logging
import math
from datetime import UTC, datetime

import pytest
import torch

from opd_trl import OPDConfig
from opd_trl.diagnostics import Condition, Monitor, Remedy, Rule
from opd_trl.reports.reading import read_run
from opd_trl.reports.summary import figures
from opd_trl.trainers import monitoring as monitor_module
from tests import tiny
from tests.reports.test_run_log import lines, sessions
from tests.trainers.build import fixed_batch, opd_trainer, opsd_trainer, settings


FIGURES = {
    "distillation/divergence_q1", "distillation/divergence_q2", "distillation/divergence_q3",
    "distillation/divergence_q4", "distillation/sampled_log_ratio", "distillation/log_ratio_other",
    "teacher/sampled_rank", "teacher/sampled_outside", "completions/repetition", "time/generation", "time/teacher",
    "time/student",
}  # fmt: skip


def fires_at(step):
    """Rules of which one fires at a step: the learning rate goes down on a line."""
    return (
        Rule("early", (Condition("learning_rate", "above", 0.0),), "Cause.", (Remedy("Do this"),), window=step),
        Rule("never", (Condition("learning_rate", "above", 1.0),), "Cause.", (Remedy("Do this"),), window=1),
    )


@pytest.fixture
def rules(monkeypatch):
    """Use `fires_at(step)` in place of the real rules."""

    def use(step):
        monkeypatch.setattr(monitor_module, "Monitor", lambda settings: Monitor(fires_at(step), settings=settings))

    return use


def test_a_training_line_has_all_figures_and_the_phases_make_up_the_step(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, max_steps=2, max_completion_length=16)
    trainer.train()
    for line in lines(tmp_path / "out")[:2]:
        assert line.keys() >= FIGURES
        phases = sum(line[f"time/{phase}"] for phase in ("generation", "teacher", "student"))
        assert phases == pytest.approx(line["step_time"], rel=0.05, abs=0.005)


def test_figures_are_those_of_the_tokens_worked_out_by_hand(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, max_completion_length=16, loss_top_k=5)
    torch.manual_seed(3)
    batch = fixed_batch(trainer)
    batch["completion_ids"][0, :8] = torch.tensor([7, 8, 9, 7, 8, 9, 7, 8])
    batch["completion_mask"][0] = batch["loss_mask"][0] = (torch.arange(batch["loss_mask"].size(1)) < 8).long()
    with torch.no_grad():
        trainer._compute_loss(trainer.model, batch)
        figures = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        log_ps = [log_probs_of(model, batch) for model in (trainer.model, trainer.teacher.model)]
    kept, ids = batch["loss_mask"].bool(), batch["completion_ids"].unsqueeze(-1)
    log_p, log_q = (x.gather(-1, ids).squeeze(-1) for x in log_ps)
    ratio = (log_q - log_p)[kept]
    rank = (log_ps[1] > log_q.unsqueeze(-1)).sum(-1).clamp(max=5).float()[kept]
    repeated = torch.zeros_like(kept)
    repeated[0, 5:8] = True
    assert figures["distillation/sampled_log_ratio"] == pytest.approx(ratio.mean().item(), abs=1e-4)
    assert figures["teacher/sampled_rank"] == pytest.approx(rank.mean().item(), abs=1e-5)
    assert figures["teacher/sampled_outside"] == pytest.approx((rank == 5).float().mean().item(), abs=1e-5)
    expected = (log_q - log_p)[repeated].mean().item()
    assert figures["distillation/log_ratio_repeated"] == pytest.approx(expected, abs=1e-4)
    of_rows = [repeated[i].sum().item() / (n - 2) for i, n in enumerate(kept.sum(-1).tolist()) if n > 2]
    assert figures["completions/repetition"] == pytest.approx(sum(of_rows) / len(of_rows), abs=1e-5)


def log_probs_of(model, batch):
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = batch["completion_ids"].size(1)
    return model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1].log_softmax(-1)


def test_several_teachers_share_figures_in_one_reduction(tmp_path, student_path, teacher_path, monkeypatch):
    names = ["math", "code"] * 4
    trainer = opd_trainer(
        tmp_path, student_path, {"math": teacher_path, "code": tiny.build_model(seed=3)},
        dataset=tiny.questions(teacher=names), per_device_train_batch_size=8, max_completion_length=12,
    )  # fmt: skip
    torch.manual_seed(0)
    batch = fixed_batch(trainer)
    reductions, reduce = [], trainer.accelerator.reduce
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda *a, **k: reductions.append(a) or reduce(*a, **k))
    trainer._compute_loss(trainer.model, batch)
    together = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert len(reductions) == 1
    parts = []
    for i in range(2):
        one = {**batch, "loss_mask": batch["loss_mask"] * (batch["teacher_index"] == i)[:, None]}
        trainer._compute_loss(trainer.model, one)
        parts.append((one["loss_mask"].sum().item(), trainer._metrics["train"]["teacher/sampled_rank"][-1]))
    expected = sum(n * rank for n, rank in parts) / sum(n for n, _ in parts)
    assert together["teacher/sampled_rank"] == pytest.approx(expected, rel=1e-5)


def test_samples_hold_two_completions_of_one_micro_batch_with_their_divergence(tmp_path, student_path):
    trainer = opsd_trainer(
        tmp_path, student_path, max_steps=12, gradient_accumulation_steps=2, num_loss_tokens_to_skip=1
    )
    trainer.train()
    found = lines(tmp_path / "out", "samples")
    assert [line["step"] for line in found] == [1, 1, 10, 10]
    for line in found:
        assert line["prompt"].startswith("<|im_start|>user")
        assert "Answer with b." not in line["prompt"]
        assert "Answer with b." in line["teacher_prompt"]
        assert len(line["tokens"]) == len(line["divergence"]) == len(line["log_ratio"]) <= 8
        assert line["divergence"][0] is None
        assert line["log_ratio"][0] is None
        assert all(isinstance(x, float) for x in line["divergence"][1:] + line["log_ratio"][1:])
        assert line["teacher"] == ""
        assert line["session"] == 0


def test_a_sample_names_its_teacher_and_belongs_to_its_row(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(
        tmp_path, student_path, {"math": teacher_path, "code": tiny.build_model(seed=3)},
        dataset=tiny.questions(teacher=["math", "code"] * 4), shuffle_dataset=False,
    )  # fmt: skip
    trainer.train()
    found = lines(tmp_path / "out", "samples")
    of_prompt = {f"{'a' * (i % 4 + 1)} plus {i}?": ["math", "code"][i % 2] for i in range(8)}
    for line in found:
        (name,) = [name for text, name in of_prompt.items() if f"\n{text}<" in line["prompt"]]
        assert line["teacher"] == name
    assert all(None not in line["divergence"] for line in found)


def test_the_mean_divergence_of_the_samples_is_that_of_the_log(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, per_device_train_batch_size=2)
    trainer.train()
    values = [x for line in lines(tmp_path / "out", "samples") for x in line["divergence"]]
    logged = lines(tmp_path / "out")[0]["distillation/per_token_divergence"]
    assert sum(values) / len(values) == pytest.approx(logged, abs=1e-3)


def test_run_json_says_what_the_run_is(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, max_steps=1, hub_token="secret-of-mine")
    trainer.train()
    text = (tmp_path / "out" / "run_log" / "run.json").read_text()
    assert "secret-of-mine" not in text
    (session,) = sessions(tmp_path / "out")
    assert session["trainer"] == "OPDTrainer"
    assert session["method"] is None
    assert session["outcome"] == "finished"
    assert session["student"] == student_path
    assert session["teachers"] == {"": teacher_path}
    assert session["config"]["loss_top_k"] == 5
    assert session["config"]["lr_scheduler_type"] == "linear"
    assert session["differs"]["loss_top_k"] == {"value": 5, "default": 20, "source": "OPDConfig"}
    assert session["processes"] == 1
    assert session["device"] == "cpu"
    assert session["versions"].keys() >= {"opd_trl", "trl", "transformers", "torch", "python"}


def test_a_student_that_teaches_itself_is_named_so(tmp_path, student_path):
    opsd_trainer(tmp_path, student_path).train()
    assert sessions(tmp_path / "out")[0]["teachers"] == {"": "the student (base)"}


def test_nothing_is_written_before_training_nor_without_the_monitor(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, trainer_options={"eval_dataset": tiny.questions(4)})
    trainer.evaluate()
    assert not (tmp_path / "out" / "run_log").exists()
    off = opd_trainer(tmp_path, student_path, teacher_path, monitor=False)
    off.train()
    assert off.monitor is None
    assert not (tmp_path / "out" / "run_log").exists()
    assert "time/teacher" not in off.state.log_history[0]
    assert "teacher/sampled_rank" in off.state.log_history[0]


def test_a_process_other_than_the_first_writes_nothing(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path)
    trainer.state.is_world_process_zero = False
    trainer.monitor.on_train_begin(trainer.args, trainer.state, trainer.control)
    trainer.monitor.on_log(trainer.args, trainer.state, trainer.control, logs={"loss": math.nan})
    trainer.monitor.on_train_end(trainer.args, trainer.state, trainer.control)
    assert not (tmp_path / "out" / "run_log").exists()


def test_evaluation_goes_into_the_log_and_into_no_sample(tmp_path, student_path, teacher_path):
    held_out = tiny.questions(4).map(lambda row: {"prompt": [{"role": "user", "content": "held out?"}]})
    trainer = opd_trainer(
        tmp_path, student_path, teacher_path, max_steps=10, eval_strategy="steps", eval_steps=9,
        trainer_options={"eval_dataset": held_out},
    )  # fmt: skip
    trainer.train()
    assert sum("eval_loss" in line for line in lines(tmp_path / "out")) == 2
    samples = lines(tmp_path / "out", "samples")
    assert [line["step"] for line in samples] == [1, 1, 10, 10]
    assert not any("held out?" in line["prompt"] for line in samples)


def test_a_rule_that_fires_is_logged_and_written_down_once(tmp_path, student_path, teacher_path, rules, caplog):
    rules(2)
    with caplog.at_level(logging.WARNING):
        opd_trainer(tmp_path, student_path, teacher_path, max_steps=4).train()
    assert sum("early at step 2" in record.message for record in caplog.records) == 1
    (warning,) = lines(tmp_path / "out", "warnings")
    assert warning["message"].startswith("early at step 2: learning_rate is ")
    del warning["message"], warning["value"]
    assert warning == {
        "step": 2, "session": 0, "rule": "early", "figure": "learning_rate", "threshold": 0.0, "window": 2,
    }  # fmt: skip
    assert sessions(tmp_path / "out")[0]["outcome"] == "finished"


def test_monitor_stop_saves_and_stops_at_the_line(tmp_path, student_path, teacher_path, rules):
    rules(2)
    trainer = opd_trainer(tmp_path, student_path, teacher_path, max_steps=5, monitor_stop=True)
    trainer.train()
    assert trainer.state.global_step == 2
    assert (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").exists()
    (session,) = sessions(tmp_path / "out")
    assert session["outcome"] == "stopped by the monitor"


def test_a_run_that_goes_on_keeps_its_first_window_and_is_not_warned_again(
    tmp_path, student_path, teacher_path, rules
):
    rules(3)
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    opd_trainer(tmp_path, student_path, teacher_path, **options).train()
    for steps in (4, 6):
        trainer = opd_trainer(tmp_path, student_path, teacher_path, **options | {"max_steps": steps})
        trainer.train(resume_from_checkpoint=True)
    found = lines(tmp_path / "out")
    assert [(line["session"], line["step"]) for line in found if "loss" in line] == [
        (0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6),
    ]  # fmt: skip
    assert [session["first_step"] for session in sessions(tmp_path / "out")] == [0, 2, 4]
    (warning,) = lines(tmp_path / "out", "warnings")
    assert (warning["step"], warning["session"]) == (3, 1)


def test_a_run_that_breaks_leaves_a_session_without_an_end(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, max_steps=3)
    original = trainer._compute_loss

    def break_at_the_third(model, inputs):
        if trainer.state.global_step == 2:
            raise FloatingPointError("broken")
        return original(model, inputs)

    trainer._compute_loss = break_at_the_third
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert sessions(tmp_path / "out")[0]["outcome"] is None
    assert [line["step"] for line in lines(tmp_path / "out")] == [1, 2]


def test_a_gradient_that_is_not_finite_is_warned_of(tmp_path, student_path, teacher_path):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, max_steps=1)
    trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    trainer.train()
    (warning,) = lines(tmp_path / "out", "warnings")
    assert warning["rule"] == "grad_norm_not_finite"
    assert warning["value"] is None
    assert warning["threshold"] is None
    assert lines(tmp_path / "out")[0]["not_finite"] == ["grad_norm"]


def test_rules_know_the_loss_and_whether_there_is_a_privileged_context(tmp_path, student_path, teacher_path):
    with pytest.warns(UserWarning, match="biased TopK"):
        biased = opd_trainer(tmp_path, student_path, teacher_path, loss_tail="drop", stop_gradient=False)
    assert biased.monitor.settings["biased"] is True
    assert biased.monitor.settings["privileged"] is False
    own = opsd_trainer(tmp_path, student_path)
    assert own.monitor.settings["biased"] is False
    assert own.monitor.settings["privileged"] is True
    assert own.monitor.settings["loss_support"] == "student"


def test_stopping_needs_the_monitor(tmp_path):
    with pytest.raises(ValueError, match=r"monitor_stop: true with monitor: false.*Set monitor: true"):
        OPDConfig(**settings(tmp_path, monitor=False, monitor_stop=True))


def test_every_line_of_every_file_is_json_on_its_own(tmp_path, student_path, teacher_path, rules):
    rules(1)
    opd_trainer(tmp_path, student_path, teacher_path, max_steps=2).train()
    for path in (tmp_path / "out" / "run_log").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
            assert entry["session"] == 0
            assert entry["step"] >= 1


@pytest.mark.parametrize(
    ("options", "figure"),
    [
        ({"teacher": "itself"}, "distillation/per_token_divergence"),
        ({"num_loss_tokens_to_skip": 8}, "distillation/per_token_divergence"),
        ({"distillation_coef": 0.0}, "grad_norm"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_a_run_that_learns_nothing_is_warned_of_and_its_report_says_so(
    tmp_path, student_path, teacher_path, caplog, options, figure
):
    teacher = student_path if options.pop("teacher", None) else teacher_path
    trainer = opd_trainer(tmp_path, student_path, teacher, max_steps=6, **options)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert all(torch.allclose(value, before[name], atol=1e-6) for name, value in trainer.model.named_parameters())
    assert f"nothing_learned at step 5: {figure} is " in caplog.text
    (run,) = figures([read_run(tmp_path / "out")], datetime.now(UTC))["runs"]
    assert run["verdict"] == "nothing learned"
