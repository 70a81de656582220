"""Figures of a pre-flight and what is said of them."""

from types import SimpleNamespace

import pytest

from opd_trl.preflight import coverage, prefixes, teacher_answers, templates
from opd_trl.preflight.findings import Finding, worst


def interval(value, half_width=0.05):
    return SimpleNamespace(value=value, low=value - half_width, high=value + half_width)


REVERSE = {"divergence": "reverse_kl", "support": "student"}
FORWARD = {"divergence": "forward_kl", "support": "union"}


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (prefixes.judge_divergence(0.4, own_teacher=False), "ok"),
        (prefixes.judge_divergence(1e-6, own_teacher=False), "stop"),
        (prefixes.judge_overlap(0.7, 20), "ok"),
        (prefixes.judge_overlap(0.3, 20), "fix"),
        (prefixes.judge_drift([0.7, 0.7, 0.68, 0.66]), "ok"),
        (prefixes.judge_drift([0.8, 0.7, 0.6, 0.5]), "fix"),
        (prefixes.judge_drift([0.0, 0.0, 0.0, 0.0]), "ok"),
        (teacher_answers.judge_teacher(interval(0.3), teacher=0.8, student=0.5), "ok"),
        (teacher_answers.judge_teacher(interval(0.03), teacher=0.53, student=0.5), "fix"),
        (teacher_answers.judge_teacher(interval(0.0), teacher=0.5, student=0.5), "stop"),
        (teacher_answers.judge_continuation(interval(-0.16), teacher=0.62, continued=0.46, student=0.45), "fix"),
        (teacher_answers.judge_continuation(interval(-0.16), teacher=0.62, continued=0.46, student=0.30), "ok"),
        (teacher_answers.judge_continuation(interval(-0.16, 0.2), teacher=0.62, continued=0.46, student=0.45), "ok"),
        (teacher_answers.judge_continuation(interval(-0.02), teacher=0.62, continued=0.60, student=0.60), "ok"),
        (teacher_answers.judge_continuation(interval(-0.2), teacher=0.30, continued=0.10, student=0.30), "fix"),
        (teacher_answers.judge_traces(0.335, **REVERSE), "ok"),
        (teacher_answers.judge_traces(0.640, **REVERSE), "fix"),
        (teacher_answers.judge_traces(0.640, **FORWARD), "ok"),
        (coverage.judge_coverage(0.05, [0.1, 0.0], top_k=20, **REVERSE), "ok"),
        (coverage.judge_coverage(0.05, [0.9, 0.0], top_k=20, **REVERSE), "fix"),
        (coverage.judge_coverage(0.30, [0.3, 0.3], top_k=20, **REVERSE), "fix"),
        (coverage.judge_coverage(0.30, [0.9, 0.3], top_k=20, **FORWARD), "ok"),
        (coverage.judge_coverage(0.0, [], top_k=20, **REVERSE), "ok"),
        (templates.judge_endings(0.1), "ok"),
        (templates.judge_endings(0.6), "fix"),
        (templates.judge_endings(1.0), "stop"),
    ],
)
def test_a_figure_gets_its_verdict_and_a_remedy_where_it_is_bad(finding, verdict):
    assert finding.verdict == verdict
    assert finding.threshold
    assert finding.sentence.endswith((".", "finds them."))
    assert bool(finding.change) == (verdict != "ok")
    assert finding.value is not None


def test_the_remedy_of_a_teacher_that_adds_nothing_depends_on_whose_it_is():
    assert "privileged_context" in prefixes.judge_divergence(0.0, own_teacher=True).change
    assert "teacher_model_name_or_path" in prefixes.judge_divergence(0.0, own_teacher=False).change


def test_the_worst_place_is_named():
    assert "0.900 at token 3" in coverage.judge_coverage(0.3, [0.1, 0.2, 0.9], top_k=20, **REVERSE).figure


@pytest.mark.parametrize(
    ("divergence", "support", "finds"),
    [
        ("forward_kl", "union", True),
        ("forward_kl", "teacher", True),
        ("mixed", "full", True),
        ("forward_kl", "student", False),
        ("forward_kl", "intersection", False),
        ("jsd", "full", False),
        ("reverse_kl", "full", False),
        ("reverse_kl", "sampled", False),
    ],
)
def test_only_a_forward_part_on_the_teachers_tokens_finds_what_the_student_never_gives(divergence, support, finds):
    assert coverage.finds_missing_modes(divergence, support) == finds


def test_the_worst_verdict_counts_and_what_was_not_run_does_not():
    findings = [Finding("x", verdict, "", "") for verdict in ("not run", "ok", "fix")]
    assert worst(findings) == "fix"
    assert worst([]) == "ok"
