"""Figures of a pre-flight and what is said of them."""

from types import SimpleNamespace

import pytest

from opd_trl.preflight import coverage, prefixes, teacher_answers, templates
from opd_trl.preflight.findings import Finding, advice, worst


def interval(value, half_width=0.05):
    return SimpleNamespace(value=value, low=value - half_width, high=value + half_width)


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (prefixes.judge_divergence(0.4, own_teacher=False), "ok"),
        (prefixes.judge_divergence(1e-6, own_teacher=False), "stop"),
        (teacher_answers.judge_teacher(interval(0.3), teacher=0.8, student=0.5), "ok"),
        (teacher_answers.judge_teacher(interval(0.03), teacher=0.53, student=0.5), "info"),
        (teacher_answers.judge_teacher(interval(0.0), teacher=0.5, student=0.5), "stop"),
        (templates.judge_endings(0.1), "ok"),
        (templates.judge_endings(0.6), "fix"),
        (templates.judge_endings(1.0), "fix"),
    ],
)
def test_a_figure_gets_its_verdict_and_a_remedy_where_it_is_bad(finding, verdict):
    assert finding.verdict == verdict
    assert finding.threshold
    assert finding.sentence.endswith(".")
    assert bool(finding.change) == (verdict in ("fix", "stop"))
    assert finding.value is not None


@pytest.mark.parametrize(
    "finding",
    [
        prefixes.overlap(0.1, 20),
        prefixes.overlap(0.9, 20),
        prefixes.drift([0.8, 0.7, 0.6, 0.1]),
        prefixes.drift([0.0, 0.0, 0.0, 0.0]),
        teacher_answers.continuation(-0.5, teacher=0.62, continued=0.12, student=0.45),
        teacher_answers.traces(3.0),
        coverage.coverage(0.9, [0.9, 0.0], top_k=20, sees=False),
        coverage.coverage(0.0, [], top_k=20, sees=True),
    ],
    ids=lambda finding: finding.name,
)
def test_what_did_not_tell_good_runs_from_bad_ones_is_information_whatever_it_is(finding):
    assert finding.verdict == "info"
    assert not finding.change
    assert not finding.threshold
    assert finding.value is not None
    assert worst([finding]) == "info"
    assert worst([finding, Finding("x", "ok", "", "")]) == "ok"


def test_advice_leaves_out_what_is_set_already():
    options = ("privileged_builder: hint, in the user's turn", "mask_truncated_completions: true", "other prompts")
    args = SimpleNamespace(privileged_builder="hint", mask_truncated_completions=True)
    assert advice(options, args) == "other prompts"
    args = SimpleNamespace(privileged_builder="system_prompt", mask_truncated_completions=False)
    assert advice(options, args) == "; or ".join(options)
    assert advice("max_completion_length: longer", SimpleNamespace(max_completion_length=64)).startswith("max_")
    assert advice("", args) == ""


def test_the_remedy_of_a_teacher_that_adds_nothing_depends_on_whose_it_is():
    assert "privileged_context" in prefixes.judge_divergence(0.0, own_teacher=True).change
    assert "teacher_model_name_or_path" in prefixes.judge_divergence(0.0, own_teacher=False).change


def test_the_worst_place_is_named():
    assert "0.900 at token 3" in coverage.coverage(0.3, [0.1, 0.2, 0.9], top_k=20, sees=True).figure
    assert "loss_support: union" in coverage.coverage(0.3, [0.1, 0.2, 0.9], top_k=20, sees=False).sentence


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
