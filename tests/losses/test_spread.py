"""The part of a divergence that no single student can remove: by hand, against dense formulas, and in the limit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_trl.losses.head import Head
from opd_trl.losses.next_token import NextToken
from opd_trl.losses.spread import context_spread, jackknife, pseudo_values


V, N, H, CONTEXTS = 13, 7, 5, 4


def of_probs(*rows, copies=1):
    """Distributions that are known, through a head that does nothing."""
    probs = torch.tensor(rows, dtype=torch.float32).repeat(copies, 1)
    return NextToken(probs.log(), Head(torch.eye(probs.size(1))))


def random_sides(seed=0, contexts=CONTEXTS, scale=1.0, **conventions):
    torch.manual_seed(seed)
    student = NextToken(torch.randn(N, H), Head(scale * torch.randn(V, H), torch.randn(V), **conventions))
    head = Head(scale * torch.randn(V, H + 1))
    return student, [NextToken(torch.randn(N, H + 1), head) for _ in range(contexts)]


def dense(side, temperature=1.0):
    return side.logits(slice(None), temperature).double().log_softmax(-1)


# p = (.8, .2), contexts q_1 = (.9, .1) and q_2 = (.5, .5).
# Reverse: sqrt(.9 * .5) = 3 sqrt(.05) and sqrt(.1 * .5) = sqrt(.05), so Z = 4 sqrt(.05), g = (.75, .25).
# Forward: a = (.7, .3).
REVERSE_STAYS = -math.log(4 * math.sqrt(0.05))
REVERSE_LEARNED = 0.8 * math.log(0.8 / 0.75) + 0.2 * math.log(0.2 / 0.25)
FORWARD_STAYS = 0.5 * (0.9 * math.log(0.9 / 0.7) + 0.1 * math.log(0.1 / 0.3)) + 0.5 * (
    0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3)
)
FORWARD_LEARNED = 0.7 * math.log(0.7 / 0.8) + 0.3 * math.log(0.3 / 0.2)


@pytest.mark.parametrize(
    ("options", "stays", "learned"),
    [
        ({"divergence": "reverse_kl"}, REVERSE_STAYS, REVERSE_LEARNED),
        ({"divergence": "forward_kl"}, FORWARD_STAYS, FORWARD_LEARNED),
        (
            {"divergence": "mixed", "beta": 0.25},
            0.75 * FORWARD_STAYS + 0.25 * REVERSE_STAYS,
            0.75 * FORWARD_LEARNED + 0.25 * REVERSE_LEARNED,
        ),
    ],
)
def test_two_contexts_and_two_tokens_worked_by_hand(options, stays, learned):
    spread = context_spread(of_probs([0.8, 0.2]), [of_probs([0.9, 0.1]), of_probs([0.5, 0.5])], **options)
    assert spread.irreducible.item() == pytest.approx(stays, abs=1e-6)
    assert spread.learnable.item() == pytest.approx(learned, abs=1e-6)
    assert spread.total.item() == pytest.approx(stays + learned, abs=1e-6)
    assert spread.irreducible_without.tolist() == [[0.0, 0.0]]  # one teacher is its own mean


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize(
    ("temperature", "conventions"), [(1.0, {}), (1.3, {"logit_scale": 1.5, "final_logit_softcapping": 4.0})]
)
def test_what_can_be_learned_is_the_divergence_to_the_optimum(chunk_size, temperature, conventions):
    student, teachers = random_sides(**conventions)
    log_p, log_q = dense(student, temperature), torch.stack([dense(teacher, temperature) for teacher in teachers])
    reverse = context_spread(student, teachers, temperature=temperature, chunk_size=chunk_size)
    geometric = log_q.mean(0).log_softmax(-1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(reverse.per_context.double(), each.T, rtol=0, atol=2e-6)
    learnable = (log_p.exp() * (log_p - geometric)).sum(-1)
    torch.testing.assert_close(reverse.learnable.double(), learnable, rtol=0, atol=2e-6)
    torch.testing.assert_close(reverse.irreducible.double(), each.mean(0) - learnable, rtol=0, atol=1e-6)

    options = {"temperature": temperature, "chunk_size": chunk_size}
    forward = context_spread(student, teachers, divergence="forward_kl", **options)
    arithmetic = log_q.exp().mean(0)
    learnable = (arithmetic * (arithmetic.log() - log_p)).sum(-1)
    stays = (log_q.exp() * (log_q - arithmetic.log())).sum(-1).mean(0)
    torch.testing.assert_close(forward.learnable.double(), learnable, rtol=0, atol=2e-6)
    torch.testing.assert_close(forward.irreducible.double(), stays, rtol=0, atol=1e-6)
    torch.testing.assert_close(forward.total.double(), learnable + stays, rtol=0, atol=2e-6)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "mixed"])
def test_without_a_context_it_is_the_spread_of_the_others(divergence):
    student, teachers = random_sides()
    found = context_spread(student, teachers, divergence=divergence)
    for i in range(CONTEXTS):
        rest = context_spread(student, teachers[:i] + teachers[i + 1 :], divergence=divergence)
        torch.testing.assert_close(found.irreducible_without[:, i], rest.irreducible, rtol=0, atol=1e-6)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "mixed"])
def test_teachers_that_agree_leave_nothing_that_cannot_be_learned(divergence):
    student, (teacher, *_) = random_sides()
    spread = context_spread(student, [teacher] * 3, divergence=divergence)
    assert spread.irreducible.max() < 1e-6
    assert spread.irreducible_without.max() < 1e-6
    assert spread.learnable.min() > 0.01
    one = context_spread(student, [teacher], divergence=divergence)
    torch.testing.assert_close(one.per_context[:, 0], spread.total)
    assert one.irreducible_without.tolist() == [[0.0]] * N


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), contexts=st.integers(2, 5), scale=st.sampled_from([0.1, 1.0, 5.0]))
def test_no_student_falls_below_it_and_the_geometric_mean_reaches_it(seed, contexts, scale):
    student, teachers = random_sides(seed, contexts, scale)
    for divergence in ("reverse_kl", "forward_kl"):
        spread = context_spread(student, teachers, divergence=divergence)
        tolerance = 1e-5 * max(1.0, spread.total.max().item())
        assert (spread.irreducible >= 0).all()
        assert (spread.learnable >= -tolerance).all()
        log_q = torch.stack([dense(teacher) for teacher in teachers])
        best = log_q.mean(0) if divergence == "reverse_kl" else log_q.exp().mean(0).log()
        optimum = NextToken(best.float(), Head(torch.eye(V)))
        at_best = context_spread(optimum, teachers[::-1], divergence=divergence)
        torch.testing.assert_close(at_best.total, spread.irreducible, rtol=1e-4, atol=tolerance)
        torch.testing.assert_close(at_best.irreducible, spread.irreducible, rtol=1e-4, atol=tolerance)


def test_tokens_that_a_teacher_cannot_give_are_no_trouble():
    def with_zeros(*probs):  # in the bias, since 0 times an infinite weight is no number
        return NextToken(torch.zeros(1, 1), Head(torch.zeros(3, 1), torch.tensor(probs).log()))

    spread = context_spread(with_zeros(1.0, 0.0, 0.0), [with_zeros(0.5, 0.5, 0.0), with_zeros(0.5, 0.0, 0.5)])
    assert spread.irreducible.item() == pytest.approx(math.log(2))
    assert spread.learnable.item() == pytest.approx(0.0, abs=1e-6)
    three = [with_zeros(0.5, 0.5, 0.0), with_zeros(0.5, 0.0, 0.5), with_zeros(0.5, 0.5, 0.0)]
    forward = context_spread(with_zeros(0.4, 0.3, 0.3), three, divergence="forward_kl")
    assert torch.isfinite(forward.irreducible_without).all()
    assert forward.irreducible_without[0, 1].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("contexts", [3, 6])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
def test_the_jackknife_leads_to_the_limit_of_many_contexts(divergence, contexts):
    # A fair coin gives the context: in the limit half of the teachers are (.8, .2), half (.4, .6).
    draws = 4000
    coins = torch.rand(contexts, draws, generator=torch.Generator().manual_seed(0)) < 0.5
    sides = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()
    teachers = [NextToken(sides[coin.long()], Head(torch.eye(2))) for coin in coins]
    student = of_probs([0.5, 0.5], copies=draws)
    spread = context_spread(student, teachers, divergence=divergence)
    limit = context_spread(of_probs([0.5, 0.5]), [of_probs([0.8, 0.2]), of_probs([0.4, 0.6])], divergence=divergence)
    corrected, error = jackknife(spread.irreducible, spread.irreducible_without)
    bias, plain_bias = (x.mean().item() - limit.irreducible.item() for x in (corrected, spread.irreducible))
    noise = (corrected.std() / math.sqrt(draws)).item()
    assert plain_bias == pytest.approx(-limit.irreducible.item() / contexts, rel=0.1)
    assert abs(bias) < 3 * noise + 0.03 * limit.irreducible.item()
    assert error.square().mean().sqrt().item() == pytest.approx(corrected.std().item(), rel=0.35)


def test_the_jackknife_is_linear_so_rows_are_summed_first():
    value, without = torch.rand(5), torch.rand(5, 4)
    torch.testing.assert_close(
        pseudo_values(value, without).sum(0), pseudo_values(value.sum(), without.sum(0)), rtol=1e-5, atol=1e-5
    )
    assert math.isnan(jackknife(torch.tensor(1.0), torch.zeros(2))[1].item())
    assert jackknife(torch.tensor(1.0), torch.zeros(2))[0].item() == 2.0


def test_never_more_positions_are_projected_than_a_chunk_holds_and_no_graph_is_kept(monkeypatch):
    student, teachers = random_sides()
    seen, project = [], NextToken.raw
    monkeypatch.setattr(NextToken, "raw", lambda self, rows: seen.append(rows) or project(self, rows))
    student.hidden_states.requires_grad_()
    spread = context_spread(student, teachers, chunk_size=2)
    assert max(rows.stop - rows.start for rows in seen) == 2
    assert not spread.per_context.requires_grad
    assert spread.per_context.dtype == torch.float32
    empty = context_spread(student.select(torch.arange(0)), [x.select(torch.arange(0)) for x in teachers])
    assert empty.per_context.shape == (0, CONTEXTS)


def test_what_cannot_be_split_is_refused():
    student, teachers = random_sides()
    with pytest.raises(ValueError, match="divergence='jsd' cannot be split, only reverse_kl, forward_kl, mixed"):
        context_spread(student, teachers, divergence="jsd")
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\], got 1.5"):
        context_spread(student, teachers, divergence="mixed", beta=1.5)
    with pytest.raises(ValueError, match="one teacher per context at each of the student's 7 positions"):
        context_spread(student, [])
    with pytest.raises(ValueError, match=r"got teachers at \[7, 3\] positions"):
        context_spread(student, [teachers[0], teachers[1].select(torch.arange(3))])
