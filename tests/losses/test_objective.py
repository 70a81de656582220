"""sampled_token_loss and masked_mean."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_trl.losses import masked_mean, reverse_kl, sampled_token_loss


def logps(seed=0, shape=(2, 5), dtype=torch.float64):
    torch.manual_seed(seed)
    student, teacher = -torch.rand(shape, dtype=dtype) * 3, -torch.rand(shape, dtype=dtype) * 3
    return student.requires_grad_(), teacher.requires_grad_()


def gradient(loss, of):
    return torch.autograd.grad(loss.sum(), of, retain_graph=True)[0]


def test_the_sampled_token_loss_is_minus_the_advantage_times_log_p_by_hand():
    student, teacher = torch.tensor([-2.0, -1.0], requires_grad=True), torch.tensor([-1.0, -1.5])
    value = sampled_token_loss(student, teacher)
    assert value.tolist() == [2.0, -0.5]  # -(1) x -2 and -(-0.5) x -1
    assert gradient(value, student).tolist() == [-1.0, 0.5]


def test_the_gradient_is_the_detached_log_ratio():
    student, teacher = logps()
    loss = sampled_token_loss(student, teacher)
    torch.testing.assert_close(gradient(loss, student), (student - teacher).detach(), rtol=0, atol=1e-12)


def test_a_baseline_shifts_the_advantage_and_a_weight_multiplies_it():
    student, teacher = logps()
    baseline, weight = torch.randn(2, 5, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64)
    advantage = weight * (teacher - student - baseline).detach()
    loss = sampled_token_loss(student, teacher, baseline=baseline, weight=weight)
    torch.testing.assert_close(loss, -advantage * student, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(loss, student), -advantage, rtol=0, atol=1e-12)


def test_only_the_student_gets_a_gradient():
    student, teacher = logps()
    baseline, weight = (torch.rand(2, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    sampled_token_loss(student, teacher, baseline=baseline, weight=weight).sum().backward()
    assert student.grad.abs().min() > 0
    assert teacher.grad is None
    assert baseline.grad is None
    assert weight.grad is None


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), vocab=st.integers(2, 12), baseline=st.floats(-3, 3))
def test_the_expectation_over_samples_is_the_full_reverse_kl_gradient_whatever_the_baseline(seed, vocab, baseline):
    torch.manual_seed(seed)
    z = torch.randn(vocab, dtype=torch.float64, requires_grad=True)
    log_q = torch.randn(vocab, dtype=torch.float64).log_softmax(-1)
    log_p = z.log_softmax(-1)
    losses = sampled_token_loss(log_p, log_q, baseline=torch.full((vocab,), baseline, dtype=torch.float64))
    expectation = gradient(log_p.detach().exp() * losses, z)
    torch.testing.assert_close(expectation, gradient(reverse_kl(log_p, log_q), z), rtol=0, atol=1e-10)


def test_an_importance_weight_corrects_samples_of_another_policy():
    torch.manual_seed(0)
    z = torch.randn(9, dtype=torch.float64, requires_grad=True)
    log_q, log_behaviour = (torch.randn(9, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    log_p = z.log_softmax(-1)
    losses = sampled_token_loss(log_p, log_q, weight=(log_p - log_behaviour).exp())
    expectation = gradient(log_behaviour.exp() * losses, z)
    torch.testing.assert_close(expectation, gradient(reverse_kl(log_p, log_q), z), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_sampled_token_loss_is_at_least_float32(dtype):
    expected = torch.promote_types(dtype, torch.float32)
    assert sampled_token_loss(*logps(dtype=dtype)).dtype == expected


def test_identical_models_give_exactly_no_sampled_gradient():
    student, _ = logps(dtype=torch.float32)
    assert gradient(sampled_token_loss(student, student.detach()), student).abs().max().item() == 0.0


def test_sampled_shapes_that_differ_are_refused():
    student, teacher = logps()
    with pytest.raises(
        ValueError, match=r"same shape, got \(2, 5\) and \(5,\). Gather both on the same support first"
    ):
        sampled_token_loss(student, teacher[0])


def test_a_masked_mean_divides_by_the_kept_tokens_or_by_the_given_count():
    loss, mask = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_mean(loss, mask).item() == pytest.approx(7 / 3)
    for count in (14, 14.0, torch.tensor(14), torch.tensor(14.0)):
        assert masked_mean(loss, mask, num_items_in_batch=count).item() == 0.5
    assert masked_mean(loss, mask.bool()).item() == masked_mean(loss, mask.float()).item()


@pytest.mark.parametrize("count", [None, 0, 7, torch.tensor(0)])
def test_an_empty_mask_gives_a_zero_that_keeps_its_graph(count):
    loss = torch.tensor([[1.0, math.nan], [math.inf, 2.0]], requires_grad=True)
    mean = masked_mean(loss, torch.zeros(2, 2), num_items_in_batch=count)
    assert mean.item() == 0.0
    mean.backward()
    assert loss.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_batch_without_any_position_gives_a_zero_that_keeps_its_graph():
    loss = torch.zeros(2, 0, requires_grad=True)
    mean = masked_mean(loss, torch.zeros(2, 0))
    mean.backward()
    assert mean.item() == 0.0
    assert loss.grad.shape == (2, 0)


def test_nan_at_masked_positions_reaches_neither_the_value_nor_the_gradient():
    loss = torch.tensor([1.0, math.nan, 3.0, -math.inf], requires_grad=True)
    mean = masked_mean(loss, torch.tensor([True, False, True, False]))
    mean.backward()
    assert mean.item() == 2.0
    assert loss.grad.tolist() == [0.5, 0.0, 0.5, 0.0]


def test_nan_at_kept_positions_is_not_hidden():
    assert masked_mean(torch.tensor([1.0, math.nan]), torch.ones(2)).isnan()


@pytest.mark.parametrize("rows", [8, 4, 2, 1])
def test_splitting_the_batch_changes_nothing_when_the_count_is_global(rows):
    """1x8, 2x4, 4x2 and 8x1: equal in value and gradient to the mean over the whole batch."""
    torch.manual_seed(0)
    whole = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(8, 6) < torch.linspace(0, 1, 8)[:, None]  # rows of very different lengths, one of them empty
    split = whole.detach().clone().requires_grad_()
    expected = masked_mean(whole, mask)
    expected.backward()
    parts = [
        masked_mean(split[i : i + rows], mask[i : i + rows], num_items_in_batch=mask.sum()) for i in range(0, 8, rows)
    ]
    sum(parts).backward()
    torch.testing.assert_close(sum(parts), expected, rtol=0, atol=1e-14)
    assert torch.equal(split.grad, whole.grad)


def test_a_mean_per_micro_batch_would_depend_on_the_split():
    loss, mask = torch.tensor([[1.0, 1.0], [5.0, 5.0]]), torch.tensor([[1, 1], [1, 0]])
    per_micro_batch = (masked_mean(loss[:1], mask[:1]) + masked_mean(loss[1:], mask[1:])) / 2
    assert per_micro_batch.item() == 3.0
    assert masked_mean(loss, mask).item() == pytest.approx(7 / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_masked_mean_is_summed_and_returned_in_at_least_float32(dtype):
    loss = torch.full((70_000,), 1.0, dtype=dtype)  # a half sum would overflow, a bfloat16 sum would stall
    mean = masked_mean(loss, torch.ones(70_000), num_items_in_batch=35_000)
    assert mean.dtype == torch.promote_types(dtype, torch.float32)
    assert mean.item() == 2.0


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"must have the same shape, got \(2, 3\) and \(3,\)"):
        masked_mean(torch.zeros(2, 3), torch.ones(3))
