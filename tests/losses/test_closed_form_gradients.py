"""The gradient table of the losses, row by row: dL/dz in logit space against its closed form, in float64.

p student, q teacher, S the support (`inside` its indicator over the vocabulary), r = log p - log q, m = p(S).
"""

import math

import pytest
import torch

from opd_trl.losses import (
    forward_kl,
    generalized_jsd,
    reverse_kl,
    sampled_token_loss,
    select_support,
    support_divergence,
)


ROWS, VOCAB, K = 5, 11, 4
TIGHT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(params=["every id kept", "some ids masked"])
def case(request):
    """Student logits, log q, support ids, support mask (or None) and the indicator of S over the vocabulary."""
    torch.manual_seed(0)
    z = torch.randn(ROWS, VOCAB, dtype=torch.float64, requires_grad=True)
    log_q = (1.5 * torch.randn(ROWS, VOCAB, dtype=torch.float64)).log_softmax(-1)
    ids = torch.stack([torch.randperm(VOCAB)[:K] for _ in range(ROWS)])
    mask = None if request.param == "every id kept" else torch.tensor([[True, True, False, True]] * ROWS)
    inside = torch.zeros(ROWS, VOCAB, dtype=torch.bool).scatter(-1, ids, True if mask is None else mask)
    return z, log_q, ids, mask, inside


def gradient(case, **options):
    z, log_q, ids, mask, _ = case
    log_p = z.log_softmax(-1).gather(-1, ids)
    loss = support_divergence(log_p, log_q.gather(-1, ids), support_mask=mask, **options)
    return torch.autograd.grad(loss.sum(), z)[0]


def figures(case):
    """p, r, m and sum_S p r of the table, dense over the vocabulary."""
    z, log_q, _, _, inside = case
    log_p = z.detach().log_softmax(-1)
    p, r = log_p.exp(), log_p - log_q
    return p, r, (p * inside).sum(-1, keepdim=True), (p * r * inside).sum(-1, keepdim=True)


def stop_gradient_form(case):
    p, r, _, value = figures(case)
    return p * (r * case[-1] - value)


def test_full_reverse_kl_has_gradient_p_times_centred_ratio(case):
    z, log_q, *_ = case
    p, r, *_ = figures(case)
    expected = p * (r - (p * r).sum(-1, keepdim=True))
    actual = torch.autograd.grad(reverse_kl(z.log_softmax(-1), log_q).sum(), z)[0]
    torch.testing.assert_close(actual, expected, **TIGHT)


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("tail", ["drop", "renormalize"])
def test_the_whole_vocabulary_as_support_gives_the_gradient_of_the_full_reverse_kl(tail, stop_gradient):
    torch.manual_seed(1)
    z = torch.randn(ROWS, VOCAB, dtype=torch.float64, requires_grad=True)
    log_q = torch.randn(ROWS, VOCAB, dtype=torch.float64).log_softmax(-1)
    loss = support_divergence(z.log_softmax(-1), log_q, tail=tail, stop_gradient=stop_gradient)
    expected = torch.autograd.grad(reverse_kl(z.log_softmax(-1), log_q).sum(), z)[0]
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), z)[0], expected, **TIGHT)


def test_plain_top_k_has_the_extra_term_that_unlearns_a_perfect_student(case):
    p, r, m, value = figures(case)
    actual = gradient(case, tail="drop", stop_gradient=False)
    torch.testing.assert_close(actual, p * ((r + 1) * case[-1] - value - m), **TIGHT)


def test_stop_gradient_top_k_follows_equation_12(case):
    torch.testing.assert_close(gradient(case, tail="drop"), stop_gradient_form(case), **TIGHT)


def test_detaching_the_weight_instead_gives_a_gradient_without_a_teacher_and_ours_is_not_it(case):
    z, log_q, _, _, inside = case
    p, _, m, _ = figures(case)
    log_p = z.log_softmax(-1)
    other = torch.autograd.grad((log_p.detach().exp() * (log_p - log_q) * inside).sum(), z)[0]
    torch.testing.assert_close(other, p * (inside.double() - m), **TIGHT)
    for stop_gradient in (True, False):
        assert (gradient(case, tail="drop", stop_gradient=stop_gradient) - other).abs().max() > 0.05


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_renormalised_top_k_moves_ratios_on_the_support_only(case, stop_gradient):
    log_q, inside = case[1], case[-1]
    p, _, m, _ = figures(case)
    p_bar = p * inside / m
    q_bar = log_q.exp() * inside / (log_q.exp() * inside).sum(-1, keepdim=True)
    r_bar = torch.where(inside, (p_bar / q_bar).log(), 0.0)
    expected = p_bar * (r_bar - (p_bar * r_bar).sum(-1, keepdim=True))
    actual = gradient(case, tail="renormalize", stop_gradient=stop_gradient)
    torch.testing.assert_close(actual, expected, **TIGHT)
    assert actual[~inside].abs().max() < 1e-15


def test_mass_times_the_renormalised_gradient_is_the_centred_form_of_equation_12(case):
    p, r, m, value = figures(case)
    torch.testing.assert_close(m * gradient(case), p * (r - value / m) * case[-1], **TIGHT)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_tail_bucket_treats_the_tail_as_one_category(case, stop_gradient):
    log_q, inside = case[1], case[-1]
    p, r, m, value = figures(case)
    q_mass = (log_q.exp() * inside).sum(-1, keepdim=True)
    r_tail = (1 - m).log() - (1 - q_mass).log()
    expected = p * (torch.where(inside, r, r_tail) - (value + (1 - m) * r_tail))
    torch.testing.assert_close(gradient(case, tail="bucket", stop_gradient=stop_gradient), expected, **TIGHT)


def sampled_gradients(z, log_q, loss_fn):
    """Gradient rows for every outcome y, `(V outcomes, V logits)`, of one position's logits."""
    log_p = z.log_softmax(-1)
    return torch.stack(
        [torch.autograd.grad(loss_fn(log_p[y], log_q[y]), z, retain_graph=True)[0] for y in range(VOCAB)]
    )


def test_sampled_token_has_gradient_ratio_times_onehot_minus_p(case):
    z, log_q = case[0][0], case[1][0]
    log_p = z.detach().log_softmax(-1)
    expected = (log_p - log_q).unsqueeze(-1) * (torch.eye(VOCAB, dtype=torch.float64) - log_p.exp())
    torch.testing.assert_close(sampled_gradients(z, log_q, sampled_token_loss), expected, **TIGHT)


def test_sampled_token_expects_the_gradient_of_the_full_reverse_kl(case):
    z, log_q = case[0][0], case[1][0]
    p = z.detach().softmax(-1)
    expected = torch.autograd.grad(reverse_kl(z.log_softmax(-1), log_q), z)[0]
    torch.testing.assert_close(p @ sampled_gradients(z, log_q, sampled_token_loss), expected, **TIGHT)


def test_backpropagating_the_log_ratio_itself_is_noise_of_zero_mean(case):
    z, log_q = case[0][0], case[1][0]
    rows = sampled_gradients(z, log_q, lambda log_p, log_q: log_p - log_q)
    torch.testing.assert_close(z.detach().softmax(-1) @ rows, torch.zeros(VOCAB, dtype=torch.float64), **TIGHT)


FORWARD_CLOSED_FORMS = {
    "drop": lambda p, q, inside: p * (q * inside).sum(-1, keepdim=True) - q * inside,
    "renormalize": lambda p, q, inside: (
        inside * (p / (p * inside).sum(-1, keepdim=True) - q / (q * inside).sum(-1, keepdim=True))
    ),
    "bucket": lambda p, q, inside: torch.where(
        inside, p - q, p - p * (1 - (q * inside).sum(-1, keepdim=True)) / (1 - (p * inside).sum(-1, keepdim=True))
    ),
}


@pytest.mark.parametrize("tail", FORWARD_CLOSED_FORMS)
def test_forward_kl_pulls_towards_the_teacher(case, tail):
    expected = FORWARD_CLOSED_FORMS[tail](figures(case)[0], case[1].exp(), case[-1])
    torch.testing.assert_close(gradient(case, tail=tail, divergence="forward_kl"), expected, **TIGHT)


def test_full_forward_kl_has_gradient_p_minus_q(case):
    z, log_q, *_ = case
    actual = torch.autograd.grad(forward_kl(z.log_softmax(-1), log_q).sum(), z)[0]
    torch.testing.assert_close(actual, z.detach().softmax(-1) - log_q.exp(), **TIGHT)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_weighs_the_log_ratio_to_the_mixture_by_one_minus_beta(case, beta):
    z, log_q, _, _, inside = case
    p = z.detach().softmax(-1)
    ratio = (p / (beta * log_q.exp() + (1 - beta) * p)).log()
    truncated = (1 - beta) * p * (ratio * inside - (p * ratio * inside).sum(-1, keepdim=True))
    full = (1 - beta) * p * (ratio - (p * ratio).sum(-1, keepdim=True))
    for stop_gradient in (True, False):  # it acts on the reverse KL alone
        actual = gradient(case, tail="drop", divergence="jsd", beta=beta, stop_gradient=stop_gradient)
        torch.testing.assert_close(actual, truncated, **TIGHT)
    actual = torch.autograd.grad(generalized_jsd(z.log_softmax(-1), log_q, beta=beta).sum(), z)[0]
    torch.testing.assert_close(actual, full, **TIGHT)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tail", FORWARD_CLOSED_FORMS)
def test_mixed_adds_forward_and_stop_gradient_reverse(case, tail, beta):
    expected = (1 - beta) * gradient(case, tail=tail, divergence="forward_kl") + beta * gradient(case, tail=tail)
    torch.testing.assert_close(gradient(case, tail=tail, divergence="mixed", beta=beta), expected, **TIGHT)
    if tail == "drop":
        p, q, inside = figures(case)[0], case[1].exp(), case[-1]
        closed = (1 - beta) * FORWARD_CLOSED_FORMS["drop"](p, q, inside) + beta * stop_gradient_form(case)
        torch.testing.assert_close(expected, closed, **TIGHT)


def student_with(p_on_support, ids):
    """Log-probabilities `(V,)` equal to `p_on_support` at `ids`; the rest of the mass in equal parts elsewhere."""
    p = torch.full((VOCAB,), (1 - p_on_support.sum().item()) / (VOCAB - len(ids)), dtype=torch.float64)
    return p.index_copy(0, ids, p_on_support).log()


def stationary_case(p_on_support, log_q, ids):
    return student_with(p_on_support, ids)[None].requires_grad_(), log_q[None], ids[None], None, None


def test_plain_top_k_rests_where_the_student_has_lost_a_factor_e_on_the_support(case):
    log_q, ids = case[1][0], case[2][0]
    point = stationary_case(log_q[ids].exp() / math.e, log_q, ids)
    assert gradient(point, tail="drop", stop_gradient=False).abs().max() < 1e-12
    assert gradient(point, tail="drop").abs().max() > 1e-2  # eq. 12 goes on towards the teacher


@pytest.mark.parametrize("tail", ["drop", "bucket", "renormalize"])
def test_stop_gradient_top_k_rests_where_the_student_equals_the_teacher_on_the_support(case, tail):
    log_q, ids = case[1][0], case[2][0]
    assert gradient(stationary_case(log_q[ids].exp(), log_q, ids), tail=tail).abs().max() < 1e-12


def test_eq_12_and_the_bucket_restore_the_mass_on_the_support_and_renormalising_leaves_it_free(case):
    log_q, ids = case[1][0], case[2][0]
    point = stationary_case(0.5 * log_q[ids].exp(), log_q, ids)  # right ratios, half of the mass
    for tail in ("drop", "bucket"):
        descent = -gradient(point, tail=tail)[0]
        assert (descent[ids] > 1e-3).all()
    assert gradient(point, tail="renormalize").abs().max() < 1e-12


def test_forward_kl_with_a_dropped_tail_rests_where_the_tail_is_empty_and_the_bucket_cures_it(case):
    log_q, ids = case[1][0], case[2][0]
    q = log_q[ids].exp()
    point = stationary_case(q / q.sum() * (1 - 1e-12), log_q, ids)
    assert gradient(point, tail="drop", divergence="forward_kl").abs().max() < 1e-11
    assert gradient(point, tail="bucket", divergence="forward_kl").abs().max() > 1e-2


@pytest.mark.parametrize("support", ["student", "teacher", "intersection", "union"])
def test_a_perfect_student_gets_exactly_no_gradient_and_the_plain_form_pushes_it_away(support):
    torch.manual_seed(2)
    z = torch.randn(ROWS, VOCAB, requires_grad=True)
    log_p = z.log_softmax(-1)
    log_q = log_p.detach().clone()
    ids, mask = select_support(log_p, log_q, top_k=K, support=support)
    for tail in ("drop", "bucket", "renormalize"):
        loss = support_divergence(log_p.gather(-1, ids), log_q.gather(-1, ids), tail=tail, support_mask=mask)
        assert torch.autograd.grad(loss.sum(), z, retain_graph=True)[0].abs().max().item() == 0.0
        assert loss.abs().max().item() == 0.0
    loss = support_divergence(
        log_p.gather(-1, ids), log_q.gather(-1, ids), tail="drop", support_mask=mask, stop_gradient=False
    )
    inside = torch.zeros(ROWS, VOCAB, dtype=torch.bool).scatter(-1, ids[:, :K], True)
    p = log_p.detach().exp()
    expected = p * (inside.float() - (p * inside).sum(-1, keepdim=True))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), z)[0], expected)
    assert expected.abs().max() > 0.05


def test_a_top_k_value_used_as_an_advantage_has_no_expected_gradient(case):
    """sum_S p r does not depend on the sampled y, so E_y[sg(value) grad log p_y] = value * grad 1 = 0."""
    z, log_q, ids = case[0][0], case[1][0], case[2][0]
    value = support_divergence(z.log_softmax(-1)[ids], log_q[ids], tail="drop").detach()
    rows = sampled_gradients(z, log_q, lambda log_p, _: value * log_p)
    torch.testing.assert_close(z.detach().softmax(-1) @ rows, torch.zeros(VOCAB, dtype=torch.float64), **TIGHT)
