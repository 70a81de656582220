"""Weights of tokens by what both models think of the sampled text, against dense formulas under autograd in float64.

p student, q teacher, y the token, a = log q_y - log p_y without a gradient.
"""

import math
from collections import defaultdict
from functools import partial

import pytest
import torch
from trl.experimental.iw_opd import IWOPDTrainer

from opd_trl.losses import support_divergence
from opd_trl.losses.fused import distillation_loss
from opd_trl.losses.head import Head
from opd_trl.losses.mixture import Mixture
from opd_trl.losses.next_token import NextToken, TeacherTopK
from opd_trl.losses.objective import Objective, Tokens
from opd_trl.losses.token_weights import TOKEN_WEIGHTS, SampledText, early_weight, trust_region, weighted


VOCAB, K, ROWS, LENGTH = 11, 4, 3, 6
TIGHT = {"rtol": 0, "atol": 1e-10}
# Rows of different lengths, one with holes, one with a single token.
KEPT = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()


def text(log_ratio, kept=None) -> SampledText:
    return SampledText(log_ratio, torch.ones_like(log_ratio, dtype=torch.bool) if kept is None else kept)


def drawn(seed=0):
    """Student logits `(B, T, V)`, the teacher's log-probabilities, tokens."""
    torch.manual_seed(seed)
    z = torch.randn(ROWS, LENGTH, VOCAB, dtype=torch.float64, requires_grad=True)
    log_q = (2 * torch.randn(ROWS, LENGTH, VOCAB, dtype=torch.float64)).log_softmax(-1)
    return z, log_q, torch.randint(VOCAB, (ROWS, LENGTH))


def at(log_probs, ids):
    return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def teachers(log_q, y):
    """The same teacher three times: by its head, as a mean, and as a server sends it."""
    head = Head(torch.eye(VOCAB, dtype=torch.float64))
    local, top = NextToken(log_q[KEPT], head), log_q[KEPT].topk(K)
    even = torch.full((int(KEPT.sum()), 2), 0.5, dtype=torch.float64)
    return {
        "local": local,
        "mean": Mixture((local, local), even, "geometric"),
        "served": TeacherTopK(top.indices, top.values, at(log_q, y)[KEPT]),
    }


def loss_of(z, y, teacher, weight, *, chunk_size=2, **options):
    student = NextToken(z[KEPT], Head(torch.eye(VOCAB, dtype=torch.float64)))
    objective = Objective(top_k=K, chunk_size=chunk_size, **options)
    tokens = Tokens(torch.full((len(student),), 0.1, dtype=torch.float64), y[KEPT])
    tokens, factors = weighted(tokens, weight, student, teacher, KEPT, objective)
    return distillation_loss(student, teacher, tokens, objective)[0], factors


def by_hand_iw(a, gamma):
    """Row by row, token by token, over kept tokens alone."""
    found = torch.ones_like(a)
    for row in range(ROWS):
        places = KEPT[row].nonzero().flatten().tolist()
        total = sum(abs(a[row, t].item()) for t in places)
        before = 0.0
        for t in places:
            found[row, t] = 1 + gamma * (1 - before / total)
            before += abs(a[row, t].item())
    return found


WEIGHTS = {
    "iw_opd": (partial(early_weight, gamma=0.7), lambda a: by_hand_iw(a, 0.7)),
    "mask": (partial(trust_region, ratio=0.3), lambda a: (a.exp() >= 0.3).double()),
    "clip": (
        partial(trust_region, ratio=0.3, outside="clip"),
        lambda a: a.clamp(min=math.log(0.3)) / a,
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("known", ["local", "mean", "served"])
def test_the_gradient_of_a_weighted_sampled_token_is_that_of_the_dense_formula(name, known):
    z, log_q, y = drawn()
    weight, by_hand = WEIGHTS[name]
    log_p = z.log_softmax(-1)
    a = (at(log_q, y) - at(log_p, y)).detach()
    w = by_hand(a)
    dense = 0.1 * (-w * a * at(log_p, y))[KEPT].sum()
    loss, factors = loss_of(z, y, teachers(log_q, y)[known], weight, support="sampled")
    torch.testing.assert_close(factors, w[KEPT], **TIGHT)
    torch.testing.assert_close(loss, dense, **TIGHT)
    torch.testing.assert_close(torch.autograd.grad(loss, z), torch.autograd.grad(dense, z), **TIGHT)
    assert len(set(factors.tolist())) > 1


@pytest.mark.parametrize(
    "options",
    [
        {"support": "full"},
        {"support": "student", "tail": "bucket"},
        {"support": "student"},
        {"support": "full", "divergence": "jsd"},
    ],
)
def test_early_weights_multiply_every_divergence_and_carry_no_gradient(options):
    z, log_q, y = drawn(1)
    log_p = z.log_softmax(-1)
    w = by_hand_iw((at(log_q, y) - at(log_p, y)).detach(), 0.5)
    ids = torch.arange(VOCAB).expand_as(z) if options["support"] == "full" else z.detach().topk(K).indices
    rest = {name: value for name, value in options.items() if name != "support"}
    rest.setdefault("tail", "drop" if options["support"] == "full" else "renormalize")
    dense = 0.1 * (w * support_divergence(log_p.gather(-1, ids), log_q.gather(-1, ids), **rest))[KEPT].sum()
    loss, _ = loss_of(z, y, teachers(log_q, y)["local"], early_weight, **options)
    torch.testing.assert_close(torch.autograd.grad(loss, z), torch.autograd.grad(dense, z), **TIGHT)


def test_early_weights_are_those_of_trls_iw_opd():
    """Its own function, on tokens at the start of their rows: what it masks, and what it averages over, are ours."""
    z, log_q, y = drawn(2)
    kept = torch.arange(LENGTH) < torch.tensor([[6], [4], [1]])
    trl = IWOPDTrainer.__new__(IWOPDTrainer)
    trl.temperature, trl.iw_opd_gamma, trl.iw_opd_epsilon = 1.0, 0.5, 1e-8
    trl.model, trl._metrics = torch.nn.Module(), {"train": defaultdict(list)}
    labels = y.masked_fill(~kept, -100)
    theirs = trl._compute_iw_opd_loss(z, y, labels, at(log_q, y))
    log_p = z.log_softmax(-1)
    a = torch.where(kept, (at(log_q, y) - at(log_p, y)).detach(), 0.0)
    ours = (-early_weight(text(a, kept)) * a * at(log_p, y))[kept].sum() / kept.sum()
    torch.testing.assert_close(ours, theirs, **TIGHT)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z), **TIGHT)


def test_early_weights_fall_along_a_row_from_one_plus_gamma():
    w = early_weight(text(torch.randn(5, 40, dtype=torch.float64)), gamma=0.5)
    assert (w[:, 0] == 1.5).all()
    assert (w.diff(dim=-1) <= 0).all()
    assert (w >= 1).all()


def test_a_row_on_which_both_models_agree_weighs_as_its_first_token():
    assert early_weight(text(torch.zeros(2, 3))).tolist() == [[1.5] * 3] * 2


@pytest.mark.parametrize("outside", ["mask", "clip"])
def test_only_a_token_that_the_teacher_rejects_lies_outside_of_the_trust_region(outside):
    a = torch.tensor([[9.0, 0.0, -2.3, -2.31, -50.0]], dtype=torch.float64)
    w = trust_region(text(a), ratio=0.1, outside=outside)
    assert w[0, :3].tolist() == [1.0, 1.0, 1.0]
    bound = torch.tensor(0.1, dtype=torch.float64).log()
    expected = torch.zeros(2) if outside == "mask" else torch.stack([bound, bound])
    torch.testing.assert_close((w * a)[0, 3:], expected.double(), **TIGHT)


def test_a_weight_may_read_the_places_that_count():
    z, log_q, y = drawn(3)
    _, factors = loss_of(z, y, teachers(log_q, y)["local"], lambda text: text.kept.cumsum(-1), support="sampled")
    assert factors.tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 3, 1]


def test_the_loss_does_not_depend_on_chunks():
    z, log_q, y = drawn(4)
    whole, _ = loss_of(z, y, teachers(log_q, y)["local"], early_weight, support="sampled", chunk_size=100)
    small, _ = loss_of(z, y, teachers(log_q, y)["local"], early_weight, support="sampled", chunk_size=1)
    torch.testing.assert_close(whole, small, **TIGHT)


def test_the_weights_need_the_temperature_of_the_loss():
    z, log_q, y = drawn(5)
    _, factors = loss_of(z, y, teachers(log_q, y)["local"], early_weight, support="sampled", temperature=2.0)
    a = at((log_q / 2).log_softmax(-1), y) - at((z.detach() / 2).log_softmax(-1), y)
    torch.testing.assert_close(factors, by_hand_iw(a, 0.5)[KEPT], **TIGHT)


def test_no_kept_token_gives_no_weight():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    head = Head(torch.eye(VOCAB))
    model = NextToken(torch.zeros(0, VOCAB), head)
    tokens = Tokens(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    _, factors = weighted(tokens, TOKEN_WEIGHTS["iw_opd"], model, model, nothing, Objective(chunk_size=4))
    assert factors.shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"ratio": 1.0}, "inside"), ({"ratio": 0.0}, "inside"), ({"ratio": 0.5, "outside": "drop"}, "outside must be")],
)
def test_a_trust_region_that_holds_nothing_or_everything_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trust_region(text(torch.zeros(1, 2)), **options)


def test_a_served_teacher_must_have_said_what_it_thinks_of_the_tokens():
    z, log_q, y = drawn()
    top = log_q[KEPT].topk(K)
    with pytest.raises(ValueError, match="need completion_log_probs"):
        loss_of(z, y, TeacherTopK(top.indices, top.values), early_weight, support="teacher")
