"""Which losses rest at the teacher, and what is said of those that do not."""

import dataclasses

import pytest
import torch

from opd_trl.losses.head import Head
from opd_trl.losses.next_token import NextToken
from opd_trl.losses.objective import Objective, Tokens
from opd_trl.preflight.loss_check import LossCheck, LossRow, cosine_of, forms_of, judge, tail_finding


def run(*, alike: bool = False, top_ks=(1, 5), sharp: float = 1.0, **options):
    """A check of 40 positions over 50 ids."""
    torch.manual_seed(0)
    defaults = {
        "top_k": 5,
        "support": "student",
        "divergence": "reverse_kl",
        "beta": 0.5,
        "tail": "renormalize",
        "stop_gradient": True,
        "pointwise_clip": None,
    }
    check = LossCheck(forms_of(Objective(**defaults | options), top_ks=top_ks, vocab_size=50))
    student = NextToken(torch.randn(40, 16) * sharp, Head(torch.randn(50, 16)))
    teacher = student if alike else NextToken(torch.randn(40, 16) * sharp, Head(torch.randn(50, 16)))
    tokens = Tokens(torch.ones(40), torch.randint(50, (40,)), None, torch.randn(40) - 3)
    for rows in (slice(0, 15), slice(15, 40)):
        at = torch.arange(40)[rows]
        check.add(student.select(at), teacher.select(at), tokens.rows(rows))
    return check, check.rows()


@pytest.mark.parametrize(
    ("options", "rests"),
    [
        ({}, True),
        ({"tail": "bucket"}, True),
        ({"tail": "drop"}, True),
        ({"tail": "reweight"}, True),
        ({"tail": "sample"}, True),
        ({"tail": "sample", "support": "teacher"}, True),
        ({"support": "union"}, True),
        ({"support": "intersection"}, True),
        ({"support": "sampled"}, True),
        ({"support": "sampled", "extrapolation": 1.25}, True),
        ({"support": "full"}, True),
        ({"divergence": "jsd", "tail": "drop"}, True),
        ({"divergence": "forward_kl", "tail": "bucket"}, True),
        ({"tail": "drop", "stop_gradient": False}, False),
        ({"divergence": "forward_kl", "tail": "drop"}, False),
        # The stop-gradient takes the term off the reverse half, and that of the forward half remains.
        ({"divergence": "mixed", "tail": "drop"}, False),
        # At beta 0.5 both halves have it, with opposite signs.
        ({"divergence": "mixed", "tail": "drop", "stop_gradient": False}, True),
    ],
)
def test_a_loss_rests_at_the_teacher_or_is_stopped(options, rests):
    check, rows = run(**options)
    assert rows[0].is_stationary_at_teacher == rests
    verdict, sentence = judge(rows, check.exact_loss)
    assert (verdict == "stop") == (not rests)
    assert ("stationary away from the teacher" in sentence) == (not rests)
    assert rests or "loss_tail: renormalize or bucket" in sentence


def test_the_whole_vocabulary_has_the_exact_gradient_and_the_bias_of_plain_topk_falls_with_k():
    _, rows = run(top_ks=(5, 20, 50))
    by_form = {(row.name, row.top_k): row for row in rows}
    exact = by_form["whole vocabulary", None]
    assert exact.cosine == pytest.approx(1.0)
    assert exact.norm_ratio == pytest.approx(1.0)
    assert exact.student_outside == pytest.approx(0.0, abs=1e-6)
    biases = [by_form["plain", k].bias for k in (5, 20, 50)]
    assert biases[0] > biases[1] > biases[2]
    assert biases[2] == pytest.approx(0.0, abs=1e-5)  # the support is the vocabulary
    assert by_form["stop-gradient", 5].bias == 0.0


def test_a_student_that_is_its_own_teacher_has_loss_and_gradient_zero():
    check, rows = run(alike=True)
    assert rows[0].loss == 0.0
    assert rows[0].gradient_at_teacher == 0.0
    assert rows[0].cosine is None
    assert judge(rows, check.exact_loss) == (
        "ok",
        "Student and teacher give the same distributions: loss 0 and gradient 0, as it must be.",
    )


def test_a_form_that_agrees_better_is_named_with_its_settings():
    row = LossRow("configured", 1, 0.1, 0.4, 0.3, 1.0, 0.0, 0.0, 0.5, 0.5)
    better = dataclasses.replace(row, name="tail bucket", top_k=20, cosine=0.98)
    biased = dataclasses.replace(row, name="plain", top_k=20, cosine=0.99, gradient_at_teacher=0.1)
    verdict, sentence = judge([row, better, biased], 0.5)
    assert verdict == "ok"  # it rests at the teacher, which is what decides
    assert "cosine of 0.300" in sentence
    assert "tail bucket with K=20 (loss_tail: bucket and loss_top_k: 20) reaches 0.980" in sentence


def test_a_loss_without_any_gradient_is_stopped():
    row = LossRow("configured", 2, 0.0, None, None, 0.0, 0.0, 0.0, 0.5, 0.5)
    assert judge([row], 0.5)[0] == "stop"


def test_forms_follow_the_divergence_and_leave_out_a_k_above_the_vocabulary():
    forward = Objective(20, "teacher", "forward_kl", 0.5, "bucket", True, None)
    names = [(form.name, form.top_k) for form in forms_of(forward, top_ks=(1, 30), vocab_size=25)]
    assert names == [
        ("configured", 20),
        ("dropped tail", 1),
        ("tail bucket", 1),
        ("dropped tail", 20),
        ("renormalised", 20),
        ("tail bucket", 20),
        ("whole vocabulary", None),
    ]
    sampled = Objective(20, "sampled", "forward_kl", 0.5, "renormalize", True, None, baseline="full")
    forms = forms_of(sampled, top_ks=(5,), vocab_size=25)
    assert forms[0].objective == sampled
    assert {form.objective.divergence for form in forms[1:]} == {"reverse_kl"}
    assert {form.objective.baseline for form in forms[1:]} == {None}
    assert [form.name for form in forms].count("sampled tail") == 1


def test_the_cosine_of_a_zero_gradient_is_none():
    assert cosine_of([torch.zeros(2)], [torch.ones(2)]) is None


def test_a_dropped_tail_lifts_what_the_exact_gradient_lowers_and_a_renormalised_one_does_not():
    """A student with 8 % outside its Top-5, which its teacher gives nothing."""
    torch.manual_seed(0)
    head = Head(torch.eye(50))
    inside, spread = torch.randn(40, 5), torch.randn(40, 45) * 0.1
    student = torch.cat([inside + 4.5, spread], -1)
    teacher = torch.cat([inside + torch.randn(40, 5) + 4.5, spread - 8], -1)
    tokens = Tokens(torch.ones(40), torch.zeros(40, dtype=torch.long))
    pulls = {}
    for tail in ("drop", "renormalize", "bucket"):
        options = {"support": "student", "divergence": "reverse_kl", "beta": 0.5, "pointwise_clip": None}
        form = Objective(top_k=5, tail=tail, stop_gradient=True, **options)
        check = LossCheck(forms_of(form, top_ks=(), vocab_size=50))
        check.add(NextToken(student, head), NextToken(teacher, head), tokens)
        pulls[tail] = check.rows()[0].tail_pull
        assert check.rows()[-1].tail_pull == pytest.approx(1.0, abs=1e-4)
    assert pulls["drop"] < 0 < pulls["bucket"]
    assert "raises probability" in tail_finding(pulls["drop"], 5).sentence
    assert "lowers probability" in tail_finding(pulls["bucket"], 5).sentence


def test_the_pull_on_the_tail_is_information():
    assert {tail_finding(pull, 5).verdict for pull in (None, 1.1, 0.5, -0.2)} == {"info"}
