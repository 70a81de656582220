"""What the table of divergences says of each entry is true, and nobody computes a divergence that is not in it."""

import pytest
import torch

from opd_trl.losses import (
    chunked_loss_from_log_probs,
    chunked_support_loss,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    support_divergence,
)
from opd_trl.losses.comparison import compare_gradients, exact_logit_gradient
from opd_trl.losses.divergences import DIVERGENCES, divergence_named
from opd_trl.losses.head import Head
from opd_trl.losses.next_token import NextToken
from opd_trl.losses.objective import Objective, Tokens
from opd_trl.losses.spread import context_spread


ROWS, VOCAB, K = 5, 11, 4
TIGHT = {"rtol": 0, "atol": 1e-10}
every_entry = pytest.mark.parametrize("name", DIVERGENCES)


def reverse(p, q, stop_gradient):
    return p * (p / q).log() + (0 if stop_gradient else p)


#: Name -> dL/dlog p_v of a single term, from p, q, beta and stop_gradient. Each entry of the table needs one.
CLOSED_FORMS = {
    "reverse_kl": lambda p, q, beta, stop_gradient: reverse(p, q, stop_gradient),
    "forward_kl": lambda p, q, beta, stop_gradient: -q,
    "jsd": lambda p, q, beta, stop_gradient: (1 - beta) * p * (p / (beta * q + (1 - beta) * p)).log(),
    "hellinger": lambda p, q, beta, stop_gradient: (p - (p * q).sqrt()) / 2,
    "mixed": lambda p, q, beta, stop_gradient: beta * reverse(p, q, stop_gradient) - (1 - beta) * q,
}


def pair(seed=0):
    """Student logits with a gradient, and log q."""
    torch.manual_seed(seed)
    z = torch.randn(ROWS, VOCAB, dtype=torch.float64, requires_grad=True)
    return z, (1.5 * torch.randn(ROWS, VOCAB, dtype=torch.float64)).log_softmax(-1)


def gradient(z, log_q, ids, **options):
    loss = support_divergence(z.log_softmax(-1).gather(-1, ids), log_q.gather(-1, ids), tail="drop", **options)
    return torch.autograd.grad(loss.sum(), z)[0]


def inside(ids):
    return torch.zeros(ROWS, VOCAB, dtype=torch.bool).scatter(-1, ids, True)


def test_every_entry_has_a_closed_form_and_a_title_of_its_own():
    assert CLOSED_FORMS.keys() == DIVERGENCES.keys()
    assert len({entry.title for entry in DIVERGENCES.values()}) == len(DIVERGENCES)


@every_entry
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("size", [K, VOCAB])
def test_the_gradient_of_an_entry_is_its_closed_form(name, beta, stop_gradient, size):
    """On a support S without its tail: dL/dz_j = g_j 1_S(j) - p_j sum_S g."""
    z, log_q = pair()
    ids = torch.stack([torch.randperm(VOCAB)[:size] for _ in range(ROWS)])
    p = z.detach().softmax(-1)
    g = CLOSED_FORMS[name](p, log_q.exp(), beta, stop_gradient) * inside(ids)
    expected = g - p * g.sum(-1, keepdim=True)
    actual = gradient(z, log_q, ids, divergence=name, beta=beta, stop_gradient=stop_gradient)
    torch.testing.assert_close(actual, expected, **TIGHT)
    if size == VOCAB:  # then both forms are the exact gradient, here and in the loss that trains
        eye = torch.eye(VOCAB, dtype=torch.float64)
        options = {"support": "full", "divergence": name, "beta": beta, "stop_gradient": stop_gradient}
        loss, _ = chunked_support_loss(z, eye, log_q, eye, torch.ones(ROWS), **options)
        torch.testing.assert_close(torch.autograd.grad(loss, z)[0], expected, **TIGHT)
        _, exact = exact_logit_gradient(z, log_q, divergence=name, beta=beta)
        torch.testing.assert_close(exact, expected, **TIGHT)


@every_entry
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_what_a_dropped_tail_leaves_of_the_gradient_at_the_teacher_is_the_bias_of_the_table(name, beta, stop_gradient):
    z, _ = pair()
    ids = z.topk(K).indices
    p = z.detach().softmax(-1)
    options = {"beta": beta, "stop_gradient": stop_gradient}
    actual = gradient(z, z.detach().log_softmax(-1), ids, divergence=name, **options)
    on = inside(ids).double()
    expected = DIVERGENCES[name].tail_bias(**options) * p * (on - (p * on).sum(-1, keepdim=True))
    torch.testing.assert_close(actual, expected, **TIGHT)


@every_entry
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_share_of_the_reverse_side_makes_the_divergence_of_both_kls(name, beta):
    z, log_q = pair()
    log_p, share = z.detach().log_softmax(-1), DIVERGENCES[name].reverse_share(beta)
    mixture = None if share is None else share * reverse_kl(log_p, log_q) + (1 - share) * forward_kl(log_p, log_q)
    value = support_divergence(log_p, log_q, divergence=name, beta=beta, tail="drop")
    if name == "jsd":
        torch.testing.assert_close(value, generalized_jsd(log_p, log_q, beta=beta), **TIGHT)
    if mixture is not None:
        torch.testing.assert_close(value, mixture, **TIGHT)


@every_entry
def test_the_stop_gradient_changes_those_entries_that_say_so(name):
    z, log_q = pair()
    ids = z.topk(K).indices
    plain, stopped = (gradient(z, log_q, ids, divergence=name, stop_gradient=x) for x in (False, True))
    assert ((plain - stopped).abs().max() > 1e-3) == DIVERGENCES[name].stop_gradient_acts


@every_entry
def test_a_token_that_the_student_almost_never_gives_is_raised_by_those_entries_that_say_so(name):
    z = torch.tensor([[20.0, 20.0, 0.0]], dtype=torch.float64, requires_grad=True)
    log_q = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64).log()
    loss = support_divergence(z.log_softmax(-1), log_q, divergence=name, tail="drop")
    push = -torch.autograd.grad(loss.sum(), z)[0][0, 2].item()
    assert (push > 1e-3) == DIVERGENCES[name].finds_missing_modes


def model(seed, positions=3):
    torch.manual_seed(seed)
    return NextToken(torch.randn(positions, 4), Head(torch.randn(VOCAB, 4)))


@every_entry
def test_contexts_split_those_entries_that_say_so(name):
    student, *teachers = (model(seed) for seed in range(4))
    if not DIVERGENCES[name].splits_by_context:
        with pytest.raises(ValueError, match=f"divergence='{name}' cannot be split"):
            context_spread(student, teachers, divergence=name)
        return
    found = context_spread(student, teachers, divergence=name)
    for i, teacher in enumerate(teachers):
        value, _ = exact_logit_gradient(
            student.logits(slice(None)), teacher.logits(slice(None)), divergence=name, beta=0.5
        )
        torch.testing.assert_close(found.per_context[:, i], value)
    assert (found.irreducible > 0).all()
    assert (found.learnable > 0).all()


X = torch.zeros(1, VOCAB).log_softmax(-1)
ONE, EYE, Y = torch.ones(1), torch.eye(VOCAB), torch.zeros(1, dtype=torch.int64)
KNOWN = {"teacher_ids": torch.arange(3)[None], "teacher_log_probs": X[:, :3], "completion_log_probs": X[:, 0]}
#: Every function of the room that takes a divergence by its name.
CALLS = {
    "support_divergence": lambda name: support_divergence(X, X, divergence=name),
    **{
        f"chunked_support_loss, {support}": lambda name, support=support: chunked_support_loss(
            X, EYE, X, EYE, ONE, top_k=3, support=support, divergence=name, completion_ids=Y
        )
        for support in ("student", "teacher", "intersection", "union", "full", "sampled")
    },
    **{
        f"chunked_loss_from_log_probs, {support}": lambda name, support=support: chunked_loss_from_log_probs(
            X, EYE, token_weights=ONE, completion_ids=Y, support=support, divergence=name, **KNOWN
        )
        for support in ("teacher", "intersection", "sampled")
    },
    "exact_logit_gradient": lambda name: exact_logit_gradient(X, X, divergence=name),
    "compare_gradients": lambda name: compare_gradients(
        model(0), model(1), Tokens(torch.ones(3)), {}, divergence=name
    ),
    "Objective.check": lambda name: Objective(divergence=name).check(Tokens(ONE)),
    "context_spread": lambda name: context_spread(model(0), [model(1)], divergence=name),
    "divergence_named": divergence_named,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_divergence_that_is_not_in_the_table_is_refused_and_those_that_are_named(call):
    for name in ("kl", "Mixed", None):
        with pytest.raises(ValueError, match=f"divergence must be one of 'reverse_kl', .*'mixed'.*, got {name!r}"):
            CALLS[call](name)
    CALLS[call]("reverse_kl")
