"""Gradients of several objectives on the same logits, against their closed forms and the code that trains."""

import pytest
import torch

from opd_trl.losses import chunked_support_loss
from opd_trl.losses.comparison import compare_gradients, exact_logit_gradient, run_objective
from opd_trl.losses.divergences import DIVERGENCES
from opd_trl.losses.head import Head
from opd_trl.losses.next_token import NextToken
from opd_trl.losses.objective import Objective, Tokens


V, N, H, K = 13, 7, 5, 4


def objective(**options) -> Objective:
    defaults = {
        "top_k": K,
        "support": "student",
        "divergence": "reverse_kl",
        "beta": 0.5,
        "tail": "renormalize",
        "stop_gradient": True,
        "pointwise_clip": None,
    }
    return Objective(**defaults | options)


def sides(*, alike: bool = False, **conventions) -> tuple[NextToken, NextToken, Tokens]:
    torch.manual_seed(0)
    student = NextToken(torch.randn(N, H), Head(torch.randn(V, H), torch.randn(V), **conventions))
    teacher = NextToken(torch.randn(N, H + 1), Head(torch.randn(V, H + 1)))
    return student, student if alike else teacher, Tokens(torch.ones(N), torch.randint(V, (N,)))


def dense(side: NextToken, temperature: float = 1.0):
    return side.logits(slice(None), temperature).log_softmax(-1)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_the_exact_gradient_of_the_reverse_kl_is_its_closed_form(chunk_size):
    student, teacher, tokens = sides()
    p, r = dense(student, 1.3).exp(), dense(student, 1.3) - dense(teacher, 1.3)
    value = (p * r).sum(-1)
    expected = p * (r - value[:, None])
    exact, _ = compare_gradients(student, teacher, tokens, {}, temperature=1.3, chunk_size=chunk_size)
    torch.testing.assert_close(exact.loss, value)
    torch.testing.assert_close(exact.squared_norm, expected.square().sum(-1))
    torch.testing.assert_close(exact.dot, exact.squared_norm)
    torch.testing.assert_close(exact.hidden, expected / 1.3 @ student.head.weight)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_exact_gradient_of_every_divergence_is_that_of_the_full_support(divergence):
    student, teacher, tokens = sides()
    full = objective(support="full", divergence=divergence, beta=0.3, tail="drop")
    exact, found = compare_gradients(student, teacher, tokens, {"full": full}, divergence=divergence, beta=0.3)
    torch.testing.assert_close(found["full"].dot, exact.squared_norm)
    torch.testing.assert_close(found["full"].hidden, exact.hidden)
    torch.testing.assert_close(found["full"].loss, exact.loss)


def test_the_term_that_plain_topk_keeps_is_the_one_of_the_table_of_gradients():
    student, teacher, tokens = sides(alike=True)
    plain = objective(tail="drop", stop_gradient=False)
    _, found = compare_gradients(student, teacher, tokens, {"plain": plain})
    p = dense(student).exp()
    on = torch.zeros_like(p).scatter_(-1, p.topk(K, dim=-1).indices, 1.0)
    remains = p * (on - (p * on).sum(-1, keepdim=True))
    torch.testing.assert_close(found["plain"].squared_norm, remains.square().sum(-1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tail": "bucket"},
        {"tail": "drop"},
        {"support": "union"},
        {"support": "intersection"},
        {"support": "sampled"},
        {"support": "full", "tail": "drop", "divergence": "jsd"},
    ],
)
def test_gradients_in_hidden_states_are_those_of_the_loss_that_trains(options):
    student, teacher, tokens = sides(final_logit_softcapping=4.0, logit_scale=1.5)
    options = {"top_k": K} | options
    own = {"own": objective(**options)}
    _, found = compare_gradients(student, teacher, tokens, own, temperature=0.7, chunk_size=2)
    hidden = student.hidden_states.clone().requires_grad_()
    loss, stats = chunked_support_loss(
        hidden,
        student.head.weight,
        teacher.hidden_states,
        teacher.head.weight,
        tokens.weights,
        completion_ids=tokens.ids,
        student_lm_head_bias=student.head.bias,
        student_final_logit_softcapping=4.0,
        student_logit_scale=1.5,
        temperature=0.7,
        **options,
    )
    loss.backward()
    torch.testing.assert_close(found["own"].hidden, hidden.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["own"].loss, stats["per_token_divergence"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["own"].student_mass, stats["student_mass"])


def test_the_exact_gradient_of_equal_logits_is_zero_and_the_teacher_gets_none():
    logits = torch.randn(3, V)
    teacher = logits.clone().requires_grad_()
    value, gradient = exact_logit_gradient(logits, teacher)
    assert value.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-6
    assert teacher.grad is None


@pytest.mark.parametrize(
    "options", [{}, {"tail": "drop"}, {"tail": "bucket"}, {"support": "union"}, {"support": "full"}]
)
@pytest.mark.parametrize("chunk_size", [2, 100])
def test_the_pull_on_the_tail_is_what_a_small_step_along_the_gradient_does(options, chunk_size):
    student, teacher, tokens = sides()
    form = objective(**options)
    _, found = compare_gradients(student, teacher, tokens, {"form": form}, chunk_size=chunk_size)
    logits = student.logits(slice(None)).double()
    inside = logits.topk(K, dim=-1).indices

    def outside(z):
        return 1 - z.softmax(-1).gather(-1, inside).sum(-1)

    _, exact = exact_logit_gradient(logits, teacher.logits(slice(None)).double())
    _, gradient, *_ = run_objective(form, logits.float(), teacher.logits(slice(None)), tokens)
    own = (
        gradient.values
        if gradient.ids is None
        else torch.zeros_like(exact.float()).scatter_add(-1, gradient.ids, gradient.values)
    )
    for name, g in (("tail_pull", own.double()), ("exact_tail_pull", exact)):
        step = 1e-4
        expected = (outside(logits + step * g) - outside(logits - step * g)) / (2 * step)
        torch.testing.assert_close(getattr(found["form"], name), expected.float(), rtol=1e-3, atol=1e-6)
