"""A trial: steps of the run as it is configured, held-out prompts before and after, one word; nothing else changes."""

import math
import random

import numpy as np
import pytest
import torch

from opd_trl.evaluation.statistics import Interval
from opd_trl.preflight.trial.run import Looks, try_out
from opd_trl.preflight.trial.verdict import Change, changes, judged, steps_to_decide
from opd_trl.trainers.looks.held_out import FIGURES, HeldOut, hold_out
from tests import tiny
from tests.trainers.build import opd_trainer, opsd_trainer


def judge(texts, rows):
    return [float("a" in text) for text in texts]


def trainer_of(tmp_path, student_path, teacher_path, **options):
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "lr_scheduler_type": "constant"} | options
    return opd_trainer(tmp_path, student_path, teacher_path, dataset=tiny.questions(32), **options)


def test_looking_at_held_out_prompts_changes_nothing_of_a_run(tmp_path, student_path, teacher_path):
    """Bit for bit: weights, random states, log. A look that leaves anything moved gives another run."""
    ends = []
    for looks in (False, True):
        trainer = trainer_of(tmp_path / str(looks), student_path, teacher_path)
        rows = hold_out(trainer, 4, seed=0)
        if looks:
            look = Looks(trainer, {1, 4}, rows, judge, stop=False)
            trainer.add_callback(look)
        torch.manual_seed(1)
        trainer.train()
        log = [{k: v for k, v in line.items() if "time" not in k} for line in trainer.state.log_history[:-1]]
        draws = random.random(), np.random.rand(), torch.rand(1)
        assert not trainer._metrics["eval"]
        assert len(trainer.last_completions) == 2  # those of the last step
        ends.append((trainer.model.state_dict(), log, draws))
    assert look.found.keys() == {0, 1, 4}
    assert all(found.keys() == {*FIGURES, "teacher_text"} for found in look.found.values())
    assert look.found[0]["reverse_kl"] != look.found[1]["reverse_kl"] != look.found[4]["reverse_kl"]
    for name, weight in ends[0][0].items():
        assert torch.equal(weight, ends[1][0][name]), name
    assert str(ends[0][1]) == str(ends[1][1])
    assert ends[0][2] == ends[1][2]


def test_the_figures_are_those_of_both_models_on_the_whole_vocabulary(tmp_path, student_path, teacher_path):
    trainer = trainer_of(tmp_path, student_path, teacher_path)
    rows = hold_out(trainer, 4, seed=0)
    found = HeldOut(trainer, rows, judge=None, seed=3).measure()
    again = HeldOut(trainer, rows, judge=None, seed=3).measure()
    assert str(found) == str(again)  # the same draws
    assert str(found) != str(HeldOut(trainer, rows, judge=None, seed=4).measure())
    assert "score" not in found
    assert found["divergence"] == found["reverse_kl"]
    mixed = trainer_of(tmp_path / "mixed", student_path, teacher_path, divergence="mixed", divergence_beta=0.25)
    other = HeldOut(mixed, rows, judge=None, seed=3).measure()
    both = zip(other["forward_kl"], other["reverse_kl"], strict=True)
    assert other["divergence"] == pytest.approx(
        [0.75 * forward + 0.25 * reverse for forward, reverse in both], rel=1e-4
    )
    torch.manual_seed(3)
    trainer.model.eval()
    kls = []
    for start in (0, 2):
        with torch.no_grad():
            batch = trainer.answer(rows[start : start + 2])
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
            at = slice(batch["prompt_ids"].size(1) - 1, -1)
            models = trainer.model, trainer.teacher.model
            p, q = (model(**inputs).logits[:, at].log_softmax(-1) for model in models)
            kl = (p.exp() * (p - q)).sum(-1) * batch["completion_mask"]
            kls += (kl.sum(-1) / batch["completion_mask"].sum(-1)).tolist()
    assert found["reverse_kl"] == pytest.approx(kls, rel=1e-4)


def test_a_trial_trains_as_the_run_would_and_not_on_the_held_out_rows(tmp_path, student_path, teacher_path):
    trainer = trainer_of(tmp_path, student_path, teacher_path, max_steps=10, lr_scheduler_type="linear")
    seen, answer = [], trainer._generate_and_score_completions

    def spy(inputs):
        if trainer.model.training:
            seen.extend(str(row["prompt"]) for row in inputs)
        return answer(inputs)

    trainer._generate_and_score_completions = spy
    rows_before = {str(prompt) for prompt in trainer.train_dataset["prompt"]}
    outcome = try_out(trainer, steps=3, prompts=3, judge=judge)
    held = rows_before - {str(prompt) for prompt in trainer.train_dataset["prompt"]}
    assert len(held) == len(outcome.before["score"]) == 4  # whole batches
    assert seen
    assert not held & set(seen)
    assert trainer.state.global_step == outcome.steps == 3
    assert outcome.learning_rates == pytest.approx([1e-2, 0.9e-2, 0.8e-2])
    assert len(outcome.halfway["score"]) == 4
    assert outcome.before["divergence"] != outcome.halfway["divergence"] != outcome.after["divergence"]


def test_a_self_teacher_with_lora_is_tried_out_too(tmp_path, student_path):
    data = tiny.questions(32, privileged_context="Answer with b.")
    trainer = opsd_trainer(tmp_path, student_path, dataset=data, max_steps=2, per_device_train_batch_size=2)
    outcome = try_out(trainer, steps=2, prompts=4, judge=None)
    assert all(math.isfinite(x) and x >= 0 for x in outcome.before["reverse_kl"] + outcome.after["reverse_kl"])


def test_what_cannot_be_tried_out_is_refused(tmp_path, student_path, teacher_path):
    with pytest.raises(ValueError, match=r"a trial of 9 steps, and the run has 4. Give --trial 4"):
        try_out(trainer_of(tmp_path, student_path, teacher_path), steps=9, prompts=2, judge=None)
    with pytest.raises(ValueError, match="10 held-out prompts are more than a quarter of the 32 rows"):
        try_out(trainer_of(tmp_path, student_path, teacher_path), steps=1, prompts=9, judge=None)
    trainer = trainer_of(tmp_path, student_path, teacher_path)
    trainer.train_dataset = iter([])
    with pytest.raises(ValueError, match="this one is a stream"):
        hold_out(trainer, 2, seed=0)


def change(value: float, half: float) -> Change:
    return Change(Interval(1.0, 1.0, 1.0), Interval(1.0, 1.0, 1.0), Interval(value, value - half, value + half))


@pytest.mark.parametrize(
    ("score", "divergence", "word"),
    [
        (None, (-0.2, 0.1), "works"),
        (None, (0.2, 0.1), "harms"),
        (None, (-0.05, 0.1), "unclear"),
        ((0.3, 0.1), (-0.05, 0.1), "works"),
        ((0.3, 0.1), (0.2, 0.1), "harms"),
        ((-0.3, 0.1), (-0.2, 0.1), "harms"),
        ((-0.05, 0.1), (-0.2, 0.1), "works"),
    ],
)
def test_the_word_follows_from_what_is_beyond_its_interval(score, divergence, word):
    found = {"divergence": change(*divergence)} | ({} if score is None else {"score": change(*score)})
    assert judged(found) == word


@pytest.mark.parametrize(
    ("score", "divergence", "word"),
    [
        (None, (-0.2, 0.1), "unclear"),
        (None, (-0.05, 0.1), "harms"),
        (None, (0.2, 0.1), "harms"),
        ((0.3, 0.1), (-0.05, 0.1), "unclear"),
        ((0.3, 0.1), (0.2, 0.1), "harms"),
        ((-0.3, 0.1), (-0.2, 0.1), "harms"),
    ],
)
def test_what_fell_first_and_rises_again_is_unclear(score, divergence, word):
    second_half = {"divergence": change(*divergence)} | ({} if score is None else {"score": change(*score)})
    assert judged({"divergence": change(1.0, 0.1)}, second_half) == word
    assert judged({"divergence": change(-1.0, 0.1)}, second_half) == "works"


def test_prompts_without_a_figure_on_either_side_are_left_out():
    found = changes({"reverse_kl": [1.0, math.nan, 2.0]}, {"reverse_kl": [0.5, 1.0, 1.0]})
    assert found["reverse_kl"].change.value == pytest.approx(-0.75)
    assert steps_to_decide(Interval(0.0, -1.0, 1.0), 10) is None
