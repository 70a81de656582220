"""TopK plus the sampled token's tail: over all tokens y that can be sampled, the whole vocabulary's reverse KL."""

import pytest
import torch

from opd_trl.losses import (
    chunked_loss_from_log_probs,
    chunked_support_loss,
    reverse_kl,
    sampled_tail_divergence,
    select_support,
    support_divergence,
)
from opd_trl.losses.divergences import DIVERGENCES
from opd_trl.losses.support import TOP_K_SUPPORTS


VOCAB, K, HIDDEN = 11, 3, 4
TIGHT = {"rtol": 0, "atol": 1e-10}
#: c, from p and r on the support `(..., K)`; None is the default.
CENTRES = {
    "0": lambda p, r: 0 * p.sum(-1),
    "sum_S p r": lambda p, r: (p * r).sum(-1),
    "log-ratio of the tails": None,
}
every_support = pytest.mark.parametrize("support", TOP_K_SUPPORTS)
every_centre = pytest.mark.parametrize("centre", CENTRES.values(), ids=CENTRES)


@pytest.fixture(params=[0, 1, 2])
def pair(request):
    """Logits of a student, with gradient, and log q, of one position."""
    torch.manual_seed(request.param)
    z = (1.5 * torch.randn(VOCAB, dtype=torch.float64)).requires_grad_()
    return z, (1.5 * torch.randn(VOCAB, dtype=torch.float64)).log_softmax(-1)


def full_gradient(z, log_q):
    return torch.autograd.grad(reverse_kl(z.log_softmax(-1), log_q), z)[0]


def outcomes(z, log_q, support, centre=None, weight=None, top_k=K):
    """Value and gradient of every y, `(V,)` and `(V, V)`, and the support as an indicator `(V,)`."""
    log_p = z.log_softmax(-1)
    ids, mask = select_support(log_p, log_q, top_k=top_k, support=support)
    inside = torch.zeros(VOCAB, dtype=torch.bool)
    inside[ids[mask]] = True
    p, q = log_p[ids], log_q[ids]
    options = {} if centre is None else {"centre": centre((p.exp() * mask).detach(), (p - q).detach())}
    weight = torch.ones(VOCAB, dtype=torch.float64) if weight is None else weight
    values = [
        sampled_tail_divergence(
            p, q, log_p[y], log_q[y], tail_weight=weight[y] * ~inside[y], support_mask=mask, **options
        )
        for y in range(VOCAB)
    ]
    gradients = torch.stack([torch.autograd.grad(value, z, retain_graph=True)[0] for value in values])
    return torch.stack(values).detach(), gradients, inside


@every_support
@every_centre
@pytest.mark.parametrize("top_k", [1, K, VOCAB])
def test_over_all_tokens_it_has_the_value_and_the_gradient_of_the_whole_reverse_kl(pair, support, centre, top_k):
    z, log_q = pair
    values, gradients, _ = outcomes(z, log_q, support, centre, top_k=top_k)
    p = z.detach().softmax(-1)
    torch.testing.assert_close(p @ gradients, full_gradient(z, log_q), **TIGHT)
    torch.testing.assert_close(p @ values, reverse_kl(z.detach().log_softmax(-1), log_q), **TIGHT)


@every_support
@every_centre
def test_each_token_has_the_gradient_of_the_closed_form(pair, support, centre):
    z, log_q = pair
    _, gradients, inside = outcomes(z, log_q, support, centre)
    log_p = z.detach().log_softmax(-1)
    p, r = log_p.exp(), log_p - log_q
    if centre is None:
        c = ((1 - p[inside].sum()) / (1 - log_q.exp()[inside].sum())).log()
    else:
        c = centre(p[inside], r[inside])
    on_support = p * ((r - c) * inside - (p * (r - c) * inside).sum())
    of_tail = (~inside * (r - c)).unsqueeze(-1) * (torch.eye(VOCAB, dtype=torch.float64) - p)
    torch.testing.assert_close(gradients, on_support + of_tail, **TIGHT)


def test_what_the_constant_adds_for_one_token_it_takes_away_over_all(pair):
    z, log_q = pair
    at_zero, at_one = (outcomes(z, log_q, "student", lambda p, r, c=c: torch.tensor(c).double()) for c in (0.0, 1.0))
    assert (at_zero[1] - at_one[1]).abs().max() > 0.05
    p = z.detach().softmax(-1)
    torch.testing.assert_close(p @ (at_zero[1] - at_one[1]), torch.zeros(VOCAB, dtype=torch.float64), **TIGHT)


@every_support
@every_centre
def test_tokens_of_another_sampler_keep_the_expectation_by_their_own_weight_alone(pair, support, centre):
    z, log_q = pair
    p, mu = z.detach().softmax(-1), (0.4 * z.detach()).softmax(-1)
    _, gradients, _ = outcomes(z, log_q, support, centre, weight=p / mu)
    torch.testing.assert_close(mu @ gradients, full_gradient(z, log_q), **TIGHT)
    _, unweighted, inside = outcomes(z, log_q, support, centre)
    if not inside.all():
        assert (mu @ unweighted - full_gradient(z, log_q)).abs().max() > 1e-3


def test_a_token_that_is_never_drawn_leaves_a_bias_that_no_weight_mends(pair):
    z, log_q = pair
    p = z.detach().softmax(-1)
    nucleus = p >= p.sort().values[3]  # without the three least likely tokens
    mu = p * nucleus / (p * nucleus).sum()
    _, gradients, _ = outcomes(z, log_q, "student", weight=torch.where(nucleus, p / mu.clamp(min=1e-300), 0.0))
    assert (mu @ gradients - full_gradient(z, log_q)).abs().max() > 1e-4


@every_support
def test_without_a_sampled_token_the_gradient_is_that_of_the_tail_bucket(pair, support):
    z, log_q = pair
    _, gradients, _ = outcomes(z, log_q, support, weight=torch.zeros(VOCAB, dtype=torch.float64))
    log_p = z.log_softmax(-1)
    ids, mask = select_support(log_p, log_q, top_k=K, support=support)
    bucket = support_divergence(log_p[ids], log_q[ids], tail="bucket", support_mask=mask)
    (expected,) = torch.autograd.grad(bucket, z)
    torch.testing.assert_close(gradients, expected.expand(VOCAB, VOCAB), **TIGHT)


# Through the chunks of the head


def every_token(seed=0):
    """One position V times, each with another y: leaves, arguments of chunked_support_loss, p, and exact gradients."""
    torch.manual_seed(seed)
    hidden, head = (torch.randn(n, HIDDEN, dtype=torch.float64).requires_grad_() for n in (1, VOCAB))
    teacher, teacher_head = torch.randn(1, 3, dtype=torch.float64), torch.randn(VOCAB, 3, dtype=torch.float64)
    log_q = (teacher @ teacher_head.mT).log_softmax(-1)
    exact = reverse_kl((hidden @ head.mT).log_softmax(-1), log_q).sum()
    p = (hidden @ head.mT).detach().softmax(-1)[0]
    rows = hidden.expand(VOCAB, -1), head, teacher.expand(VOCAB, -1), teacher_head
    return (hidden, head), rows, p, exact


def loss_over(rows, weights, **options):
    return chunked_support_loss(
        *rows, weights, tail="sample", top_k=K, completion_ids=torch.arange(VOCAB), chunk_size=4, **options
    )


@every_support
def test_the_chunked_loss_expects_the_whole_reverse_kl_and_reports_it(support):
    leaves, rows, p, exact = every_token()
    loss, stats = loss_over(rows, p, support=support)
    torch.testing.assert_close(loss, exact, **TIGHT)
    torch.testing.assert_close(p @ stats["per_token_divergence"], exact.detach(), **TIGHT)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(exact, leaves), **TIGHT)


@every_support
def test_importance_weights_go_to_the_sampled_term_alone(support):
    leaves, rows, p, exact = every_token()
    mu = (p**0.3) / (p**0.3).sum()
    loss, _ = loss_over(rows, mu, support=support, importance_cap=1e9, sampling_logps=mu.log())
    torch.testing.assert_close(loss, exact, **TIGHT)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(exact, leaves), **TIGHT)


def test_a_cap_bounds_the_sampled_term_and_not_the_terms_on_the_support():
    leaves, rows, p, _ = every_token()
    ids = p.topk(K).indices
    only = torch.zeros(VOCAB, dtype=torch.float64)
    found = []
    for cap, y in ((None, ids[0]), (1e-3, ids[0]), (None, p.argmin()), (1e-3, p.argmin())):
        weights = only.index_fill(0, y, 1.0)
        loss, _ = loss_over(rows, weights, importance_cap=cap, sampling_logps=None if cap is None else p.log())
        found.append(torch.autograd.grad(loss, leaves)[0])
    torch.testing.assert_close(found[0], found[1], **TIGHT)
    assert (found[2] - found[3]).abs().max() > 1e-2


@every_support
def test_given_text_has_the_gradient_of_the_tail_bucket(support):
    leaves, rows, p, _ = every_token()
    given, _ = loss_over(rows, p, support=support, student_wrote=torch.zeros(VOCAB, dtype=torch.bool))
    bucket, _ = chunked_support_loss(*rows, p, tail="bucket", support=support, top_k=K)
    bucket = torch.autograd.grad(bucket, leaves)
    torch.testing.assert_close(torch.autograd.grad(given, leaves), bucket, **TIGHT)
    half, _ = loss_over(rows, p, support=support, student_wrote=torch.arange(VOCAB) % 2 == 0)
    assert (torch.autograd.grad(half, leaves)[0] - bucket[0]).abs().max() > 1e-3


@every_support
def test_a_perfect_student_gets_exactly_no_gradient(support):
    torch.manual_seed(0)
    hidden, head = torch.randn(VOCAB, HIDDEN, requires_grad=True), torch.randn(VOCAB, HIDDEN, requires_grad=True)
    loss, _ = loss_over((hidden, head, hidden.detach(), head.detach()), torch.ones(VOCAB), support=support)
    assert loss.item() == 0.0
    assert all(x.abs().max().item() == 0.0 for x in torch.autograd.grad(loss, (hidden, head)))


@pytest.mark.parametrize("support", ["student", "teacher"])
def test_a_support_with_all_mass_on_it_is_finite_in_float32(support):
    hidden = torch.tensor([[60.0, 0.0, 0.0], [0.0, 60.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 60.0, 0.0], [0.0, 59.0, 0.0]])
    ids = torch.tensor([1, 2])
    loss, stats = chunked_support_loss(
        hidden, torch.eye(3), teacher, torch.eye(3), torch.ones(2),
        top_k=1, support=support, tail="sample", completion_ids=ids,
    )  # fmt: skip
    assert loss.isfinite()
    assert torch.autograd.grad(loss, hidden)[0].isfinite().all()
    assert all(x.isfinite().all() for x in stats.values())


@pytest.mark.parametrize("support", ["teacher", "intersection"])
def test_a_teacher_that_sends_its_top_k_and_the_sampled_token_is_enough(support):
    leaves, rows, p, exact = every_token()
    log_q = (rows[2] @ rows[3].mT).log_softmax(-1)
    log_probs, ids = log_q.topk(K)
    known = {"support": support, "tail": "sample", "completion_ids": torch.arange(VOCAB), "chunk_size": 4}
    loss, _ = chunked_loss_from_log_probs(*rows[:2], ids, log_probs, p, completion_log_probs=log_q.diagonal(), **known)
    torch.testing.assert_close(loss, exact, **TIGHT)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(exact, leaves), **TIGHT)
    with pytest.raises(ValueError, match="tail='sample' needs completion_ids and completion_log_probs"):
        chunked_loss_from_log_probs(*rows[:2], ids, log_probs, p, **known)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"support": "full"}, "the support 'full' has no tail"),
        ({"support": "sampled"}, "the support 'sampled' has no tail"),
        *[
            ({"divergence": name}, f"the tail of the {name} is a mean over the teacher's tokens too")
            for name in DIVERGENCES
            if name != "reverse_kl"
        ],
        ({"stop_gradient": False}, r"keep their '\+1', which the sampled token does not cancel"),
        ({"pointwise_clip": 0.05}, "a pointwise clip of 0.05 cuts terms on the support and not the tail"),
        ({"baseline": "full"}, "belong to support='sampled'"),
        ({"extrapolation": 1.25}, "belong to support='sampled'"),
    ],
)
def test_what_it_cannot_be_right_for_is_refused(options, message):
    _, rows, p, _ = every_token()
    with pytest.raises(ValueError, match=message):
        loss_over(rows, p, **options)


def test_it_needs_the_sampled_tokens():
    _, rows, p, _ = every_token()
    with pytest.raises(ValueError, match="tail='sample' and importance weights do too"):
        chunked_support_loss(*rows, p, tail="sample", top_k=K)
    with pytest.raises(ValueError, match="Use sampled_tail_divergence, or chunked_support_loss with completion_ids"):
        support_divergence(p.log(), p.log(), tail="sample")
