import itertools
import math

import numpy as np
import pytest

from opd_trl.evaluation import bootstrap_interval, majority, paired_difference, pass_at_k


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(n):
    for right in range(n + 1):
        samples = [1] * right + [0] * (n - right)
        for k in range(1, n + 1):
            chosen = [max(choice) for choice in itertools.combinations(samples, k)]
            assert pass_at_k(samples, k) == pytest.approx(sum(chosen) / len(chosen))


def test_pass_at_k_does_not_overflow_and_needs_k_samples():
    assert pass_at_k([1] + [0] * 9999, 5000) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"k from 1 to the 3 samples of a problem, got 4"):
        pass_at_k([1, 0, 0], 4)


@pytest.mark.parametrize(
    ("values", "correct", "expected"),
    [
        (["7", "7", "8"], [1, 1, 0], 1.0),
        (["7", "8", "8"], [1, 0, 0], 0.0),
        (["7", "8", "9", "9", "7"], [1, 0, 0, 0, 1], 0.5),
        ([None, None, "7"], [0, 0, 1], 1.0),
        ([None, None], [0, 0], 0.0),
    ],
)
def test_the_majority_is_the_answer_with_most_votes_and_ties_share(values, correct, expected):
    assert majority(values, correct) == expected


def test_the_interval_agrees_with_the_normal_approximation():
    values = (np.random.default_rng(0).random(400) < 0.3).astype(float)
    interval = bootstrap_interval(values)
    half = 1.96 * math.sqrt(values.mean() * (1 - values.mean()) / len(values))
    assert interval.value == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=0.004)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.004)
    assert interval.half_width == pytest.approx(half, abs=0.004)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        difficulty = rng.beta(2, 2, size=(100, 1))
        interval = bootstrap_interval((rng.random((100, 4)) < difficulty).astype(float), resamples=1000, seed=trial)
        covered += interval.low <= 0.5 <= interval.high
    assert 0.91 <= covered / 300 <= 0.98


def test_drawing_seeds_too_widens_the_interval_where_seeds_differ_as_a_whole():
    rng = np.random.default_rng(2)
    runs = (rng.random((300, 5)) < np.array([0.2, 0.35, 0.5, 0.65, 0.8])).astype(float)
    problems, both = bootstrap_interval(runs), bootstrap_interval(runs, over_seeds=True)
    assert problems.half_width < 0.03
    # Five seeds at these rates: the standard deviation of their mean is 0.095.
    assert both.half_width == pytest.approx(1.96 * 0.095, rel=0.15)


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.025 ** (1 / 50), 1.0), (0.0, 0.0, 1 - 0.025 ** (1 / 50))])
def test_where_all_problems_agree_the_exact_binomial_bound_stands_in(value, low, high):
    assert bootstrap_interval([value] * 50, bounds=(0, 1)) == pytest.approx((value, low, high))
    assert bootstrap_interval([value] * 50) == (value, value, value)


def test_intervals_are_the_same_every_time_and_not_for_another_seed():
    values = np.random.default_rng(3).random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_pairs_make_the_difference_of_two_models_narrow():
    rng = np.random.default_rng(4)
    hard = rng.random((500, 1))
    first, second = ((rng.random((500, 8)) < hard * factor).mean(1) for factor in (0.8, 0.9))
    paired = paired_difference(first, second)
    assert paired.value == pytest.approx(second.mean() - first.mean())
    assert paired.low > 0
    assert paired.half_width < 0.6 * math.hypot(
        bootstrap_interval(first).half_width, bootstrap_interval(second).half_width
    )


def test_models_that_agree_everywhere_may_still_differ_a_little():
    difference = paired_difference([1.0, 0.0] * 25, [1.0, 0.0] * 25, bounds=(-1, 1))
    assert difference.value == 0
    assert difference.high == -difference.low == pytest.approx(1 - 0.025 ** (1 / 50))


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_an_interval_of_nothing_or_of_no_number_is_refused(values):
    with pytest.raises(ValueError, match="finite values of at least one problem"):
        bootstrap_interval(values)


def test_a_paired_difference_needs_the_same_problems():
    with pytest.raises(ValueError, match=r"same problems on both sides, got 2 and 3"):
        paired_difference([1, 0], [1, 0, 1])
