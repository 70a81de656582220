"""The losses that published methods add, against their closed-form gradients in float64.

p student, q teacher, ref a reference model, mu the sampler, S a support, m = p(S), r = log p - log q, y the token.
"""

import pytest
import torch

from opd_trl.losses import (
    chunked_loss_from_log_probs,
    chunked_support_loss,
    extrapolated_logps,
    importance_weight,
    sampled_token_loss,
    support_divergence,
)


VOCAB, K, TOKENS = 9, 4, 7
TIGHT = {"rtol": 0, "atol": 1e-10}


def distributions(seed=0, rows=TOKENS):
    """Student logits and the log-probabilities of teacher, reference and sampler."""
    torch.manual_seed(seed)
    z = torch.randn(rows, VOCAB, dtype=torch.float64, requires_grad=True)
    others = [(1.5 * torch.randn(rows, VOCAB, dtype=torch.float64)).log_softmax(-1) for _ in range(3)]
    return z, *others


def head_loss(z, log_q, weights=None, **options):
    """The chunked loss for logits z and log q: the identity is the LM head of both."""
    eye = torch.eye(VOCAB, dtype=torch.float64)
    weights = torch.ones(len(z), dtype=torch.float64) if weights is None else weights
    return chunked_support_loss(z, eye, log_q, eye, weights, **options)


def gradient(loss, z):
    return torch.autograd.grad(loss.sum(), z)[0]


def at_token(x, y):
    return x.gather(-1, y.unsqueeze(-1)).squeeze(-1)


def policy_gradient(z, y, advantage):
    """-A (1[j = y] - p_j)."""
    p = z.detach().softmax(-1)
    return -advantage.unsqueeze(-1) * (torch.nn.functional.one_hot(y, VOCAB) - p)


# TopK policy-gradient weights (Rethinking)


def test_reweighted_top_k_is_the_stop_gradient_form_over_the_mass():
    z, log_q, *_ = distributions()
    ids = z.detach().topk(K).indices
    inside = torch.zeros(TOKENS, VOCAB, dtype=torch.bool).scatter(-1, ids, True)
    p = z.detach().softmax(-1)
    r, m = p.log() - log_q, (p * inside).sum(-1, keepdim=True)
    expected = p * (r * inside - (p * r * inside).sum(-1, keepdim=True)) / m
    loss, stats = head_loss(z, log_q, top_k=K, support="student", tail="reweight")
    torch.testing.assert_close(gradient(loss, z), expected, **TIGHT)
    torch.testing.assert_close(stats["per_token_divergence"], (p * r * inside).sum(-1) / m.squeeze(-1), **TIGHT)


def test_reweighted_top_k_is_the_policy_gradient_summed_over_the_support():
    z, log_q, *_ = distributions()
    ids = z.detach().topk(K).indices
    log_p = z.log_softmax(-1).gather(-1, ids)
    shares = log_p.detach().softmax(-1)
    surrogate = (shares * (log_p.detach() - log_q.gather(-1, ids)) * log_p).sum()
    expected = gradient(surrogate, z)
    loss, _ = head_loss(z, log_q, top_k=K, support="student", tail="reweight")
    torch.testing.assert_close(gradient(loss, z), expected, **TIGHT)


def test_reweighted_top_k_differs_from_the_gradient_of_the_renormalised_kl():
    z, log_q, *_ = distributions()
    losses = {
        tail: head_loss(z, log_q, top_k=K, support="student", tail=tail)[0] for tail in ("reweight", "renormalize")
    }
    gradients = {tail: gradient(loss, z) for tail, loss in losses.items()}
    assert (gradients["reweight"] - gradients["renormalize"]).abs().max() > 0.05


def test_reweighting_leaves_a_perfect_student_alone_and_survives_an_empty_support():
    z, *_ = distributions()
    loss, _ = head_loss(z, z.detach(), top_k=K, support="student", tail="reweight")
    torch.testing.assert_close(gradient(loss, z), torch.zeros_like(z), **TIGHT)
    student = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64).log_softmax(-1)
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    value = support_divergence(student.log_softmax(-1), teacher, tail="reweight", support_mask=nothing)
    assert value.tolist() == [0.0]
    assert gradient(value, student).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("options", [{"divergence": "forward_kl"}, {"divergence": "jsd"}, {"stop_gradient": False}])
def test_reweighting_is_refused_where_it_is_no_policy_gradient(options):
    x = torch.zeros(1, 3).log_softmax(-1)
    with pytest.raises(ValueError, match="needs divergence='reverse_kl' with stop_gradient=True"):
        support_divergence(x, x, tail="reweight", **options)


# A baseline for the sampled token (vOPD)


def baseline_of(kind, z, log_q):
    """Minus the reverse KL, over the vocabulary or between the distributions renormalised on the student's TopK."""
    log_p = z.detach().log_softmax(-1)
    if kind == "top_k":
        ids = log_p.topk(K).indices
        log_p, log_q = (x.gather(-1, ids).log_softmax(-1) for x in (log_p, log_q))
    return -(log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("kind", ["full", "top_k"])
def test_the_baseline_is_taken_off_the_advantage(kind):
    z, log_q, *_ = distributions()
    y = torch.arange(TOKENS) % VOCAB
    advantage = at_token(log_q, y) - at_token(z.detach().log_softmax(-1), y) - baseline_of(kind, z, log_q)
    loss, stats = head_loss(z, log_q, top_k=K, support="sampled", completion_ids=y, baseline=kind)
    torch.testing.assert_close(gradient(loss, z), policy_gradient(z, y, advantage), **TIGHT)
    reported = at_token(z.detach().log_softmax(-1) - log_q, y)
    torch.testing.assert_close(stats["per_token_divergence"], reported, **TIGHT)


@pytest.mark.parametrize("kind", ["full", "top_k"])
def test_the_baseline_keeps_the_expected_gradient_and_lowers_its_variance(kind):
    z, log_q, *_ = distributions(rows=1)
    p = z.detach().softmax(-1).squeeze(0)

    def moments(baseline):
        rows = torch.stack(
            [
                gradient(
                    head_loss(
                        z, log_q, support="sampled", top_k=K, completion_ids=torch.tensor([y]), baseline=baseline
                    )[0],
                    z,
                )[0]
                for y in range(VOCAB)
            ]
        )
        mean = (p.unsqueeze(-1) * rows).sum(0)
        return mean, (p * ((rows - mean) ** 2).sum(-1)).sum()

    (plain, plain_variance), (mean, variance) = moments(None), moments(kind)
    log_p = z.log_softmax(-1)
    exact = gradient((log_p.exp() * (log_p - log_q)).sum(), z)[0]
    torch.testing.assert_close(plain, exact, **TIGHT)
    torch.testing.assert_close(mean, exact, **TIGHT)
    assert variance < plain_variance


# Extrapolation beyond the teacher (ExOPD)


def test_the_extrapolated_advantage_is_that_of_exopd():
    z, log_q, log_ref, _ = distributions()
    y = torch.arange(TOKENS) % VOCAB
    log_p = at_token(z.detach().log_softmax(-1), y)
    q, ref = at_token(log_q, y), at_token(log_ref, y)
    advantage = -((log_p - ref) - 1.25 * (q - ref))
    options = {"support": "sampled", "completion_ids": y, "extrapolation": 1.25, "reference_logps": ref}
    loss, _ = head_loss(z, log_q, **options)
    torch.testing.assert_close(gradient(loss, z), policy_gradient(z, y, advantage), **TIGHT)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.25, 2.0])
def test_the_expected_extrapolated_gradient_vanishes_at_the_geometric_mixture(factor):
    _, log_q, log_ref, _ = distributions(rows=1)
    z = (factor * log_q + (1 - factor) * log_ref).requires_grad_()
    p = z.detach().softmax(-1).squeeze(0)
    log_p = z.log_softmax(-1).squeeze(0)
    target = extrapolated_logps(log_q.squeeze(0), log_ref.squeeze(0), factor=factor)
    expected = (p * sampled_token_loss(log_p, target)).sum()
    torch.testing.assert_close(gradient(expected, z), torch.zeros_like(z), **TIGHT)


def test_a_factor_of_one_is_the_plain_teacher_and_needs_no_reference():
    z, log_q, *_ = distributions()
    y = torch.arange(TOKENS) % VOCAB
    plain, _ = head_loss(z, log_q, support="sampled", completion_ids=y)
    one, _ = head_loss(z, log_q, support="sampled", completion_ids=y, extrapolation=1.0)
    assert plain.item() == one.item()
    with pytest.raises(ValueError, match=r"extrapolation=1.25 needs reference_logps"):
        head_loss(z, log_q, support="sampled", completion_ids=y, extrapolation=1.25)


# Importance weights with a cap (SDFT, SDPO, ExOPD)


@pytest.mark.parametrize("cap", [0.7, 2.0, 5.0])
@pytest.mark.parametrize("support", ["student", "full", "sampled"])
def test_every_token_is_weighted_by_its_capped_ratio_and_the_ratio_has_no_gradient(support, cap):
    z, log_q, _, log_mu = distributions()
    y = torch.arange(TOKENS) % VOCAB
    mu = at_token(log_mu, y)
    mu[0] = float("nan")  # the sampler did not say
    ratio = (at_token(z.detach().log_softmax(-1), y) - mu).exp().clamp(max=cap)
    ratio[0] = min(1.0, cap)
    options = {"support": support, "top_k": K, "completion_ids": y}
    loss, stats = head_loss(z, log_q, importance_cap=cap, sampling_logps=mu, **options)
    by_hand, plain_stats = head_loss(z, log_q, ratio, **options)
    torch.testing.assert_close(loss, by_hand, **TIGHT)
    torch.testing.assert_close(gradient(loss, z), gradient(by_hand, z), **TIGHT)
    torch.testing.assert_close(stats["per_token_divergence"], plain_stats["per_token_divergence"], **TIGHT)


def test_without_sampling_log_probs_every_weight_is_one():
    z, log_q, *_ = distributions()
    capped, _ = head_loss(z, log_q, top_k=K, importance_cap=2.0)
    plain, _ = head_loss(z, log_q, top_k=K)
    assert capped.item() == plain.item()


def test_the_weight_is_detached_and_never_above_the_cap():
    student = torch.tensor([-1.0, -0.1], requires_grad=True)
    weight = importance_weight(student, torch.tensor([-1.5, -9.0]), cap=3.0)
    assert not weight.requires_grad
    torch.testing.assert_close(weight, torch.tensor([0.5, 1.0986]).exp(), rtol=0, atol=1e-4)


# The pointwise clip (OPSD)


def test_the_clip_leaves_the_gradient_of_the_entries_below_it():
    z, log_q, *_ = distributions()
    log_p = z.log_softmax(-1)
    q, p = log_q.exp(), log_p.detach().exp()
    below = q * (log_q - log_p.detach()) < 0.05
    expected = p * (q * below).sum(-1, keepdim=True) - q * below  # the forward KL of the entries below alone
    loss, _ = head_loss(z, log_q, support="full", divergence="forward_kl", pointwise_clip=0.05)
    torch.testing.assert_close(gradient(loss, z), expected, **TIGHT)


def test_the_clip_can_turn_the_loss_negative_and_push_the_teachers_favourite_down():
    student = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64).log()
    value = support_divergence(
        student.log_softmax(-1), teacher, divergence="forward_kl", tail="drop", pointwise_clip=0.05
    )
    assert value < 0
    assert gradient(value, student)[0] > 0  # descent lowers the token that the teacher wants most
    plain = support_divergence(student.log_softmax(-1), teacher, divergence="forward_kl", tail="drop")
    assert gradient(plain, student)[0] < 0


# Against a teacher that is known by log-probabilities


def test_a_served_teacher_gives_the_same_extrapolated_and_weighted_loss():
    z, log_q, log_ref, log_mu = distributions()
    y = torch.arange(TOKENS) % VOCAB
    options = {
        "support": "sampled",
        "completion_ids": y,
        "extrapolation": 1.25,
        "reference_logps": at_token(log_ref, y),
        "importance_cap": 2.0,
        "sampling_logps": at_token(log_mu, y),
    }
    eye, weights = torch.eye(VOCAB, dtype=torch.float64), torch.rand(TOKENS, dtype=torch.float64)
    top = log_q.topk(K)
    served, _ = chunked_loss_from_log_probs(
        z, eye, top.indices, top.values, weights, completion_log_probs=at_token(log_q, y), **options
    )
    local, _ = head_loss(z, log_q, weights, **options)
    torch.testing.assert_close(served, local, **TIGHT)
    torch.testing.assert_close(gradient(served, z), gradient(local, z), **TIGHT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "full"}, r"baseline='full' .* belong to support='sampled', got support='student'"),
        ({"extrapolation": 1.25}, "belong to support='sampled'"),
        (
            {"support": "sampled", "baseline": "half", "completion_ids": torch.zeros(1).long()},
            "baseline must be one of",
        ),
        ({"importance_cap": 0.0}, "importance_cap must be > 0, got 0.0"),
        ({"importance_cap": 2.0, "sampling_logps": torch.zeros(1)}, "needs completion_ids"),
        (
            {"importance_cap": 2.0, "sampling_logps": torch.zeros(2), "completion_ids": torch.zeros(1).long()},
            "sampling_logps must have one row",
        ),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    z, log_q, *_ = distributions(rows=1)
    with pytest.raises(ValueError, match=message):
        head_loss(z, log_q, **{"top_k": K, **options})
