"""forward_kl, reverse_kl and generalized_jsd on the whole vocabulary, and what they share with support_divergence."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_trl.losses import forward_kl, generalized_jsd, reverse_kl, support_divergence
from opd_trl.losses.divergences import DIVERGENCES


FUNCTIONS = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd 0.1": lambda p, q: generalized_jsd(p, q, beta=0.1),
    "jsd 0.5": lambda p, q: generalized_jsd(p, q, beta=0.5),
    "jsd 0.9": lambda p, q: generalized_jsd(p, q, beta=0.9),
}
ON_SUPPORT = {
    f"{divergence} {tail}": {"divergence": divergence, "tail": tail}
    for divergence in DIVERGENCES
    for tail in ("drop", "bucket", "renormalize")
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_form = pytest.mark.parametrize("form", ON_SUPPORT)
seeds = st.integers(0, 10_000)
quick = settings(max_examples=40, deadline=None, derandomize=True)


def pair(seed=0, shape=(3, 7), dtype=torch.float64, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    draw = [spread * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [x.log_softmax(-1).to(dtype) for x in draw]


def dense_reference(name, log_p, log_q):
    """The formulas in numpy, with probabilities instead of log-probabilities."""
    p, q = np.exp(log_p.numpy()), np.exp(log_q.numpy())
    if name == "forward_kl":
        return (q * np.log(q / p)).sum(-1)
    if name == "reverse_kl":
        return (p * np.log(p / q)).sum(-1)
    beta = float(name.split()[1])
    m = beta * q + (1 - beta) * p
    return (beta * q * np.log(q / m) + (1 - beta) * p * np.log(p / m)).sum(-1)


def test_values_worked_by_hand():
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    # 3/4 log(3/2) + 1/4 log(1/2) = 3/4 log 3 - log 2
    assert forward_kl(p, q).item() == pytest.approx(0.75 * math.log(3) - math.log(2), abs=1e-7)
    # 1/2 log(2/3) + 1/2 log 2 = log 2 - 1/2 log 3
    assert reverse_kl(p, q).item() == pytest.approx(math.log(2) - 0.5 * math.log(3), abs=1e-7)
    # m = (5/8, 3/8): half of 3/4 log(6/5) + 1/4 log(2/3) and of 1/2 log(4/5) + 1/2 log(4/3)
    jsd = 0.5 * (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)) + 0.25 * math.log(16 / 15)
    assert generalized_jsd(p, q, beta=0.5).item() == pytest.approx(jsd, abs=1e-7)


def test_values_on_a_support_worked_by_hand():
    # p = (1/2, 1/4, [1/4]), q = (1/4, 1/4, [1/2]): on S r = (log 2, 0), the tail has r = -log 2
    p, q = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.25]).log()
    log2, log3 = math.log(2), math.log(3)
    expected = {
        ("reverse_kl", "drop"): 0.5 * log2,
        ("reverse_kl", "bucket"): 0.25 * log2,
        ("reverse_kl", "renormalize"): 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3),
        ("forward_kl", "drop"): -0.25 * log2,
        ("forward_kl", "bucket"): 0.25 * log2,
        ("forward_kl", "renormalize"): 0.5 * math.log(3 / 4) + 0.5 * math.log(3 / 2),
        # m = (3/8, 1/4, [3/8])
        ("jsd", "drop"): 0.5 * (0.25 * (log2 - log3) + 0.5 * (2 * log2 - log3)),
        ("jsd", "bucket"): 0.5 * (0.25 * (log2 - log3) + 0.5 * (2 * log2 - log3)) * 2,
        ("mixed", "drop"): 0.25 * (-0.25 * log2) + 0.75 * 0.5 * log2,
    }
    for (divergence, tail), value in expected.items():
        beta = 0.75 if divergence == "mixed" else 0.5
        actual = support_divergence(p, q, divergence=divergence, tail=tail, beta=beta)
        assert actual.item() == pytest.approx(value, abs=1e-6), (divergence, tail)


@every_function
def test_values_agree_with_numpy(name):
    log_p, log_q = pair()
    np.testing.assert_allclose(FUNCTIONS[name](log_p, log_q).numpy(), dense_reference(name, log_p, log_q), atol=1e-12)


def test_both_kls_agree_with_torch_kl_div_in_value_and_gradient():
    log_p, log_q = pair()
    log_p.requires_grad_()
    for ours, theirs in (
        (forward_kl(log_p, log_q), F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)),
        (reverse_kl(log_p, log_q), F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)),
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        (ours_grad,) = torch.autograd.grad(ours.sum(), log_p)
        torch.testing.assert_close(ours_grad, torch.autograd.grad(theirs.sum(), log_p)[0], rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_jsd_agrees_with_gkd_of_trl(monkeypatch, beta):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    gkd = pytest.importorskip("trl.experimental.gkd")
    log_p, log_q = pair(shape=(1, 4, 9))
    theirs = gkd.GKDTrainer.generalized_jsd_loss(log_p, log_q, beta=beta, reduction="sum")
    assert generalized_jsd(log_p, log_q, beta=beta).sum().item() == pytest.approx(theirs.item(), abs=1e-12)


def test_the_ends_of_jsd_are_the_two_kls_in_both_forms():
    log_p, log_q = pair()
    for beta, end in ((0.0, forward_kl(log_p, log_q)), (1.0, reverse_kl(log_p, log_q))):
        assert torch.equal(generalized_jsd(log_p, log_q, beta=beta), end)
        assert torch.equal(support_divergence(log_p, log_q, divergence="jsd", beta=beta, tail="drop"), end)
        assert torch.equal(support_divergence(log_p, log_q, divergence="mixed", beta=beta, tail="drop"), end)


def test_jsd_divided_by_its_vanishing_weight_tends_to_the_kls():
    log_p, log_q = pair()
    for beta, end in ((1e-6, forward_kl(log_p, log_q)), (1 - 1e-6, reverse_kl(log_p, log_q))):
        scaled = generalized_jsd(log_p, log_q, beta=beta) / min(beta, 1 - beta)
        torch.testing.assert_close(scaled, end, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tail", ["drop", "bucket", "renormalize"])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_the_whole_vocabulary_as_support_gives_the_full_divergence_with_every_tail(divergence, tail):
    log_p, log_q = pair(seed=3)
    name = "jsd 0.5" if divergence == "jsd" else divergence
    actual = support_divergence(log_p, log_q, divergence=divergence, tail=tail)
    torch.testing.assert_close(actual, FUNCTIONS[name](log_p, log_q), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tail", ["drop", "bucket"])
def test_a_support_of_one_token_is_one_term_and_its_bucket_a_bernoulli_divergence(tail):
    log_p, log_q = (x[..., :1] for x in pair(seed=4))
    p, q = log_p.exp().squeeze(-1), log_q.exp().squeeze(-1)
    expected = p * (p / q).log()
    if tail == "bucket":
        expected = expected + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(support_divergence(log_p, log_q, tail=tail), expected, rtol=0, atol=1e-12)


@every_form
def test_identical_models_are_at_distance_zero_on_a_support(form):
    log_p, _ = pair(dtype=torch.float32)
    assert support_divergence(log_p[..., :4], log_p[..., :4], **ON_SUPPORT[form]).abs().max() < 1e-7


@every_function
def test_identical_models_are_at_distance_zero(name):
    log_p, _ = pair(dtype=torch.float32)
    assert FUNCTIONS[name](log_p, log_p).abs().max() < 1e-7


@quick
@given(seed=seeds, spread=st.sampled_from([0.1, 1.0, 5.0]))
def test_divergences_are_never_negative_and_the_jsd_never_exceeds_its_entropy_of_beta(seed, spread):
    log_p, log_q = pair(seed, spread=spread)
    for name, function in FUNCTIONS.items():
        value = function(log_p, log_q)
        assert value.min() >= -1e-12, name
        if name.startswith("jsd"):
            beta = float(name.split()[1])
            assert value.max() <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12


@quick
@given(seed=seeds, size=st.integers(2, 6))
def test_coarse_divergences_never_exceed_the_full_one_and_mass_splits_by_the_chain_rule(seed, size):
    """KL of the K+1 categories = KL of the two masses + m KL of the renormalised probabilities."""
    log_p, log_q = pair(seed)
    p, q = log_p[..., :size], log_q[..., :size]
    for divergence, full in (("reverse_kl", reverse_kl), ("forward_kl", forward_kl)):
        bucket = support_divergence(p, q, divergence=divergence, tail="bucket")
        inner = support_divergence(p, q, divergence=divergence, tail="renormalize")
        masses = [x.logsumexp(-1, keepdim=True) for x in (p, q)]
        outer = support_divergence(*masses, divergence=divergence, tail="bucket")
        weight = (masses[0] if divergence == "reverse_kl" else masses[1]).exp().squeeze(-1)
        assert (bucket >= -1e-12).all()
        assert (bucket <= full(log_p, log_q) + 1e-12).all()
        torch.testing.assert_close(bucket, outer + weight * inner, rtol=0, atol=1e-11)


@every_function
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_inputs_are_computed_and_returned_in_float32(name, dtype):
    log_p, log_q = pair(dtype=dtype)
    value = FUNCTIONS[name](log_p, log_q)
    assert value.dtype == torch.float32
    assert torch.equal(value, FUNCTIONS[name](log_p.float(), log_q.float()))


@every_function
def test_float64_stays_float64_even_if_only_one_side_is(name):
    log_p, log_q = pair()
    assert FUNCTIONS[name](log_p, log_q).dtype == torch.float64
    assert FUNCTIONS[name](log_p.float(), log_q).dtype == torch.float64


@every_form
def test_dtypes_of_the_support_form_follow_the_same_rule(form):
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32)):
        assert support_divergence(*pair(dtype=dtype), **ON_SUPPORT[form]).dtype == expected
    assert support_divergence(*pair(), **ON_SUPPORT[form]).dtype == torch.float64


EXTREMES = {
    "opposite": ([1e4, -1e4, 0.0, 0.0], [-1e4, 1e4, 0.0, 0.0]),
    "student sure": ([1e4, -1e4, -1e4, -1e4], [0.0, 0.0, 0.0, 0.0]),
    "teacher sure": ([0.0, 0.0, 0.0, 0.0], [1e4, -1e4, -1e4, -1e4]),
    "both sure": ([1e4, -1e4, -1e4, -1e4], [1e4, -1e4, -1e4, -1e4]),
}


@every_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_logits_of_plus_and_minus_1e4_give_finite_values_and_gradients(extreme, dtype, form):
    student, teacher = (torch.tensor(x, dtype=dtype) for x in EXTREMES[extreme])
    student.requires_grad_()
    for size in (2, 4):
        for options in ({}, {"stop_gradient": False}, {"pointwise_clip": 0.05}):
            log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
            value = support_divergence(log_p[:size], log_q[:size], **ON_SUPPORT[form], **options)
            assert value.isfinite()
            assert torch.autograd.grad(value, student)[0].isfinite().all()


@every_function
def test_a_probability_of_zero_on_both_sides_counts_for_nothing(name):
    logits = torch.tensor([1.0, 0.5, -math.inf], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([0.0, 1.0, -math.inf], dtype=torch.float64).log_softmax(-1)
    value = FUNCTIONS[name](logits.log_softmax(-1), teacher)
    torch.testing.assert_close(value, FUNCTIONS[name](logits[:2].log_softmax(-1), teacher[:2]), rtol=0, atol=1e-12)
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_a_token_that_only_one_side_excludes_costs_infinity_in_one_direction_alone():
    without = torch.tensor([0.0, 0.0, -math.inf]).log_softmax(-1)
    uniform = torch.zeros(3).log_softmax(-1)
    assert reverse_kl(without, uniform).item() == pytest.approx(math.log(1.5))
    assert forward_kl(uniform, without).item() == pytest.approx(math.log(1.5))
    assert reverse_kl(uniform, without).item() == math.inf
    assert forward_kl(without, uniform).item() == math.inf
    student = without.clone().requires_grad_()
    for value in (reverse_kl(student, uniform), generalized_jsd(student, uniform, beta=0.5)):
        assert value.isfinite()
        assert torch.autograd.grad(value, student)[0].isfinite().all()


@every_function
def test_leading_dimensions_are_kept_and_positions_are_independent(name):
    log_p, log_q = pair(shape=(2, 3, 5))
    value = FUNCTIONS[name](log_p, log_q)
    assert value.shape == (2, 3)
    torch.testing.assert_close(value[1, 2], FUNCTIONS[name](log_p[1, 2], log_q[1, 2]), rtol=0, atol=1e-14)


@every_function
def test_different_shapes_are_refused_with_the_remedy(name):
    with pytest.raises(ValueError, match=r"got \(3, 4\) and \(3, 7\). Gather both on the same support first"):
        FUNCTIONS[name](pair()[0][:, :4], pair()[1])


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_beta_outside_the_unit_interval_is_refused(beta):
    for call in (generalized_jsd, support_divergence):
        with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\], got .* 0 is the forward KL, 1 the reverse"):
            call(*pair(), beta=beta)


def test_unknown_options_are_refused_and_the_known_ones_named():
    with pytest.raises(
        ValueError, match=r"divergence must be one of 'reverse_kl', 'forward_kl', 'jsd', 'mixed'.*, got"
    ):
        support_divergence(*pair(), divergence="kl")
    with pytest.raises(ValueError, match="'bucket', 'renormalize', 'reweight', 'sample', got 'keep'"):
        support_divergence(*pair(), tail="keep")
