import torch

from opd_trl.diagnostics import METRICS, dropped_tail_advice, token_means, token_sums


def stats(*values):
    return {name: torch.tensor(values) * (i + 1) for i, name in enumerate(METRICS)}


def test_every_token_weighs_alike_however_ranks_share_them():
    together = token_means(token_sums(stats(1.0, 2.0, 6.0)))
    apart = token_means(token_sums(stats(1.0)) + token_sums(stats(2.0, 6.0)))
    assert together == apart
    assert together["distillation/per_token_divergence"] == 3.0
    assert together["support/student_mass"] == 6.0


def test_no_kept_token_gives_zeros():
    assert set(token_means(token_sums(stats())).values()) == {0.0}


def test_a_dropped_tail_is_advised_against_only_where_mass_is_missing():
    assert dropped_tail_advice(0.999) is None
    assert "only 0.930 of the student's mass" in dropped_tail_advice(0.93)
