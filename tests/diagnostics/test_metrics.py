import pytest
import torch

from opd_trl.diagnostics import (
    FIGURES,
    METRICS,
    TURN_FIGURES,
    divergence_by_teacher,
    dropped_tail_advice,
    token_means,
    token_sums,
)


NAN = float("nan")


def sums(divergence=(), *, quartile=None, repeated=None, ratio=None, rank=None, repetition=(0.5,), top_k=4, **turns):
    """`token_sums` of tokens of which some figures matter, the others count up; 2 of 3 tokens of the step are real."""
    n = len(divergence)
    stats = {name: torch.tensor(divergence) * (i + 1) for i, name in enumerate(METRICS)}
    stats["sampled_log_ratio"] = torch.zeros(n) if ratio is None else torch.tensor(ratio)
    stats["teacher_rank"] = torch.zeros(n) if rank is None else torch.tensor(rank)
    of_tokens = token_sums(
        stats,
        quartile=torch.zeros(n, dtype=int) if quartile is None else torch.tensor(quartile),
        repeated=torch.zeros(n, dtype=int) if repeated is None else torch.tensor(repeated),
        repetition=torch.tensor(repetition),
        top_k=top_k,
        **{name: torch.tensor(values) for name, values in turns.items()},
    )
    return torch.cat([of_tokens, torch.tensor([[3.0, 2.0] if n else [0.0, 0.0]])])


def test_every_token_weighs_alike_however_ranks_share_them():
    together = token_means(sums([1.0, 2.0, 6.0]))
    apart = token_means(sums([1.0]) + sums([2.0, 6.0]))
    assert together == apart
    assert together["distillation/per_token_divergence"] == 3.0
    assert together["support/student_mass"] == 6.0


def test_what_nothing_was_counted_for_is_left_out():
    assert token_means(sums([], repetition=[])) == {}
    figures = token_means(sums([1.0], quartile=[2]))
    assert "distillation/divergence_q3" in figures
    assert not {f"distillation/divergence_q{i}" for i in (1, 2, 4)} & figures.keys()
    assert "distillation/log_ratio_repeated" not in figures


def test_the_figures_of_positions_repetition_and_ranks_are_those_worked_by_hand():
    figures = token_means(
        sums(
            [1.0, 3.0, 5.0, 7.0, 9.0],
            quartile=[0, 0, 1, 2, 3],
            repeated=[0, 0, 1, 1, 0],
            ratio=[-1.0, NAN, 0.5, 1.5, -2.0],
            rank=[0.0, 4.0, 1.0, 4.0, 3.0],
            repetition=[0.25, NAN, 0.75],
        )
    )
    expected = {
        "distillation/per_token_divergence": 5.0,
        "distillation/divergence_q1": 2.0,
        "distillation/divergence_q2": 5.0,
        "distillation/divergence_q3": 7.0,
        "distillation/divergence_q4": 9.0,
        "distillation/sampled_log_ratio": -0.25,  # the one that nobody knows does not count
        "distillation/log_ratio_repeated": 1.0,
        "distillation/log_ratio_other": -1.5,
        "teacher/sampled_rank": 2.4,
        "teacher/sampled_outside": 0.4,
        "completions/repetition": 0.5,  # nor does a completion without a 3-gram
        "tokens/computed_per_real": 1.5,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    left_out = {
        *TURN_FIGURES,
        "completions/turns",
        "distillation/token_weight",
    }  # none here
    assert set(FIGURES) - left_out == figures.keys()


def test_the_figures_of_turns_are_those_worked_by_hand():
    figures = token_means(sums([1.0, 3.0, 5.0, 7.0, 9.0], turn=[1, 1, 2, 6, 9], turns=[9, 1, 0]))
    assert figures["distillation/turn_1/divergence"] == 2.0
    assert figures["distillation/turn_2/divergence"] == 5.0
    assert figures["distillation/turn_later/divergence"] == 8.0
    assert figures["distillation/turn_1/student_mass"] == 4.0  # `sums` counts the others up
    assert figures["distillation/turn_1/teacher_mass"] == 6.0
    assert figures["distillation/turn_later/entropy"] == 40.0
    assert figures["completions/turns"] == 5.0  # one that the student wrote nothing of does not count
    assert not [name for name in figures if "turn_3" in name]


def test_each_teacher_with_a_token_has_its_divergence():
    both = torch.stack([sums([1.0, 3.0]), sums([], repetition=[])])
    assert divergence_by_teacher(["math", "code"], both) == {"distillation/per_token_divergence/math": 2.0}


def test_a_dropped_tail_is_advised_against_only_where_mass_is_missing():
    assert dropped_tail_advice(0.999) is None
    assert "only 0.930 of the student's mass" in dropped_tail_advice(0.93)
