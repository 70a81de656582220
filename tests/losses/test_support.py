"""select_support, and what support_divergence does with masks, tails, clips and the teacher."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_trl.losses import select_support, support_divergence
from opd_trl.losses.divergences import DIVERGENCES


TAILS = ("drop", "bucket", "renormalize")
SUPPORTS = ("student", "teacher", "intersection", "union")
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)
every_tail = pytest.mark.parametrize("tail", TAILS)


def log_prob_pair(shape=(4, 9), seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return [torch.randn(shape, dtype=dtype).log_softmax(-1) for _ in range(2)]


@pytest.mark.parametrize(
    ("support", "expected"),
    [("student", {0, 1}), ("teacher", {1, 4}), ("intersection", {1}), ("union", {0, 1, 4})],
)
def test_the_four_supports_of_two_worked_rows(support, expected):
    student = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    teacher = torch.tensor([[1.0, 5.0, 2.0, 3.0, 4.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    ids, mask = select_support(student, teacher, top_k=2, support=support)
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert sorted(ids[0][mask[0]].tolist()) == sorted(expected)
    assert sorted(ids[1][mask[1]].tolist()) == [0, 1]


def test_an_intersection_can_be_empty_and_its_mask_row_is_then_all_false():
    student, teacher = torch.tensor([[2.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]])
    _, mask = select_support(student, teacher, top_k=2, support="intersection")
    assert not mask.any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), vocab=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_supports_are_the_sets_that_their_names_say_each_id_once(data, vocab, seed):
    top_k = data.draw(st.integers(1, vocab))
    student, teacher = log_prob_pair((2, 3, vocab), seed)
    kept = {}
    for support in SUPPORTS:
        ids, mask = select_support(student, teacher, top_k=top_k, support=support)
        assert ids.shape == mask.shape == (2, 3, 2 * top_k if support == "union" else top_k)
        assert not mask.requires_grad
        rows = zip(ids.flatten(0, 1), mask.flatten(0, 1), strict=True)
        kept[support] = [row_ids[row_mask].tolist() for row_ids, row_mask in rows]
    for of_student, of_teacher, both, either in zip(*(kept[support] for support in SUPPORTS), strict=True):
        assert len(of_student) == len(of_teacher) == top_k
        assert len(either) == len(set(either))
        assert len(both) == len(set(both))
        assert set(both) == set(of_student) & set(of_teacher)
        assert set(either) == set(of_student) | set(of_teacher)
    for log_probs, name in ((student, "student"), (teacher, "teacher")):
        for row, chosen in zip(log_probs.flatten(0, 1), kept[name], strict=True):
            others = [row[v].item() for v in range(vocab) if v not in chosen]
            assert row[chosen].min() >= max(others, default=-math.inf)


def test_selecting_a_support_needs_no_gradient_and_logits_do_as_well_as_log_probs():
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ids, _ = select_support(logits, logits.flip(-1), top_k=3, support="union")
    assert torch.equal(ids, select_support(logits.log_softmax(-1), logits.flip(-1), top_k=3, support="union")[0])
    assert logits.grad_fn is None


@every_divergence
@every_tail
def test_a_masked_entry_counts_like_an_absent_one_in_value_and_gradient(divergence, tail):
    student, teacher = log_prob_pair()
    mask = torch.tensor([True, False, True, True, False])
    full = student[:, :5].clone().requires_grad_()
    poisoned = torch.where(mask, teacher[:, :5], math.nan)
    cut = student[:, :5][:, mask].clone().requires_grad_()
    options = {"divergence": divergence, "tail": tail}
    masked = support_divergence(full, poisoned, support_mask=mask.expand(4, 5), **options)
    absent = support_divergence(cut, teacher[:, :5][:, mask], **options)
    torch.testing.assert_close(masked, absent, rtol=0, atol=1e-12)
    masked.sum().backward()
    absent.sum().backward()
    torch.testing.assert_close(full.grad[:, mask], cut.grad, rtol=0, atol=1e-12)
    assert full.grad[:, ~mask].abs().max() == 0.0


@every_divergence
@every_tail
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_an_empty_row_is_a_zero_that_keeps_its_graph(divergence, tail, dtype):
    student, teacher = log_prob_pair(dtype=dtype)
    student = student[:, :3].clone().requires_grad_()
    for mask in (torch.zeros(4, 3, dtype=torch.bool), torch.tensor([[True] * 3, [False] * 3] * 2)):
        for options in ({}, {"stop_gradient": False}, {"pointwise_clip": 0.05}):
            value = support_divergence(
                student, teacher[:, :3], divergence=divergence, tail=tail, support_mask=mask, **options
            )
            assert value.requires_grad
            empty = ~mask.any(-1)
            assert value[empty].abs().max() == 0.0
            (grad,) = torch.autograd.grad(value.sum(), student)
            assert grad.isfinite().all()
            assert grad[empty].abs().max() == 0.0


@every_divergence
@every_tail
def test_a_disjoint_intersection_trains_on_nothing_without_failing(divergence, tail):
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[-1.0, 0.0, 1.0, 2.0]]).log_softmax(-1)
    student = logits.log_softmax(-1)
    ids, mask = select_support(student, teacher, top_k=2, support="intersection")
    value = support_divergence(
        student.gather(-1, ids), teacher.gather(-1, ids), divergence=divergence, tail=tail, support_mask=mask
    )
    value.sum().backward()
    assert value.item() == 0.0
    assert logits.grad.abs().max().item() == 0.0


def test_pointwise_clip_bounds_every_signed_term_from_above():
    student, teacher = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    # terms 1/2 log 2 = 0.347 and -1/4 log 2 = -0.173; only the first is above the clip
    unclipped = support_divergence(student, teacher, tail="drop")
    clipped = support_divergence(student, teacher, tail="drop", pointwise_clip=0.05)
    assert unclipped.item() == pytest.approx(0.25 * math.log(2), abs=1e-6)
    assert clipped.item() == pytest.approx(0.05 - 0.25 * math.log(2), abs=1e-6)


def test_pointwise_clip_can_turn_a_divergence_negative_and_silences_the_clipped_entries():
    log_p, log_q = (
        x.log().requires_grad_() for x in (torch.tensor([0.9, 0.1]).double(), torch.tensor([0.1, 0.9]).double())
    )
    for divergence in ("reverse_kl", "forward_kl"):
        value = support_divergence(log_p, log_q, divergence=divergence, tail="drop", pointwise_clip=0.05)
        assert value.item() < 0.0
        (grad,) = torch.autograd.grad(value, log_p)
        large = 0 if divergence == "reverse_kl" else 1
        assert grad[large].item() == 0.0
        assert grad[1 - large].item() != 0.0


@every_divergence
@every_tail
def test_a_clip_above_every_term_changes_nothing(divergence, tail):
    student, teacher = log_prob_pair()
    options = {"divergence": divergence, "tail": tail}
    clipped = support_divergence(student[:, :4], teacher[:, :4], pointwise_clip=100.0, **options)
    assert torch.equal(clipped, support_divergence(student[:, :4], teacher[:, :4], **options))


@every_tail
def test_stop_gradient_changes_no_value_and_no_gradient_but_that_of_reverse_kl_with_a_dropped_tail(tail):
    for divergence in DIVERGENCES:
        gradients, values = [], []
        for stop_gradient in (True, False):
            z, teacher = log_prob_pair()
            log_p = z.requires_grad_().log_softmax(-1)[:, :4]
            value = support_divergence(
                log_p, teacher[:, :4], divergence=divergence, tail=tail, stop_gradient=stop_gradient
            )
            values.append(value.detach())
            gradients.append(torch.autograd.grad(value.sum(), z)[0])
        assert torch.equal(*values)
        acts = tail == "drop" and DIVERGENCES[divergence].stop_gradient_acts
        assert torch.allclose(*gradients, rtol=0, atol=1e-12) != acts


def test_renormalising_a_support_of_one_token_is_refused_with_the_remedy():
    student, teacher = log_prob_pair()
    with pytest.raises(ValueError, match=r"support of one token is identically zero. Use a larger top_k"):
        support_divergence(student[:, :1], teacher[:, :1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_divergence
def test_a_bucket_stays_finite_where_the_mass_rounds_to_one(divergence, dtype):
    z = torch.tensor([[60.0, 60.0, -60.0], [60.0, 60.0, -60.0], [1.0, 0.0, -1.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -1.0], [61.0, 60.0, -60.0], [61.0, 60.0, -60.0]], dtype=dtype).log_softmax(-1)
    value = support_divergence(z.log_softmax(-1)[:, :2], teacher[:, :2], divergence=divergence, tail="bucket")
    assert value.isfinite().all()
    assert (value > 0).all()
    assert torch.autograd.grad(value.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize(("dtype", "tail_mass", "rtol"), [(torch.float64, 1e-12, 1e-9), (torch.float32, 1e-6, 1e-5)])
def test_a_bucket_keeps_the_digits_of_a_tail_far_below_one(dtype, tail_mass, rtol):
    """1 - exp(log m) would lose them."""
    student = torch.tensor([math.log(0.5)], dtype=dtype)
    teacher = torch.tensor([math.log1p(-tail_mass)], dtype=dtype)
    expected = 0.5 * math.log(0.5 / (1 - tail_mass)) + 0.5 * math.log(0.5 / tail_mass)
    assert support_divergence(student, teacher, tail="bucket").item() == pytest.approx(expected, rel=rtol)


MASK = torch.tensor([[True, True, False, True], [True, False, True, True]])


@every_divergence
@every_tail
@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_gradients_of_the_plain_forms_pass_gradcheck_in_logit_space(divergence, tail, mask):
    torch.manual_seed(5)
    z = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    _, teacher = log_prob_pair((2, 6), seed=6)
    ids = torch.tensor([[4, 0, 2, 5], [1, 3, 0, 2]])

    def loss(z, clip):
        return support_divergence(
            z.log_softmax(-1).gather(-1, ids),
            teacher.gather(-1, ids),
            divergence=divergence,
            tail=tail,
            beta=0.3,
            stop_gradient=False,
            support_mask=mask,
            pointwise_clip=clip,
        )

    assert torch.autograd.gradcheck(lambda z: loss(z, None), (z,))
    assert torch.autograd.gradcheck(lambda z: loss(z, 0.05), (z,))


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize(("divergence", "beta", "tail"), list(itertools.product(DIVERGENCES, (0.0, 0.4, 1.0), TAILS)))
def test_the_teacher_never_gets_a_gradient(divergence, beta, tail, stop_gradient, mask, clip):
    student, teacher = (x.requires_grad_() for x in log_prob_pair((2, 4)))
    value = support_divergence(
        student,
        teacher,
        divergence=divergence,
        beta=beta,
        tail=tail,
        stop_gradient=stop_gradient,
        support_mask=mask,
        pointwise_clip=clip,
    )
    value.sum().backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_top_k_and_support_are_checked_with_the_remedy_in_the_message():
    student, teacher = log_prob_pair()
    for top_k in (0, -3):
        with pytest.raises(ValueError, match=f"must be >= 1, got {top_k}. Use loss_support='full' for the whole"):
            select_support(student, teacher, top_k=top_k)
    with pytest.raises(ValueError, match="must be at most the vocabulary of 9, got 10"):
        select_support(student, teacher, top_k=10)
    with pytest.raises(ValueError, match="support must be one of 'student', 'teacher', 'intersection', 'union', got"):
        select_support(student, teacher, top_k=2, support="both")
