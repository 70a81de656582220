"""chunked_support_log_probs against log_softmax and gather of the dense logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_trl.losses import chunked_support_log_probs


TIGHT = {"rtol": 0, "atol": 1e-10}
TRANSFORMS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "logit scale": {"logit_scale": 0.3},
    "soft cap": {"final_logit_softcapping": 2.0},
    "all of them": {"temperature": 1.7, "logit_scale": 0.3, "final_logit_softcapping": 2.0},
}
every_chunk_size = pytest.mark.parametrize("chunk_size", [1, 3, 7, 8, 256])


def head_inputs(n=7, hidden=4, vocab=11, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in ((n, hidden), (vocab, hidden), (vocab,))]


def dense(hidden, weight, bias, ids, *, temperature=1.0, logit_scale=1.0, final_logit_softcapping=None):
    z = (hidden @ weight.T + bias) * logit_scale
    if final_logit_softcapping is not None:
        z = final_logit_softcapping * torch.tanh(z / final_logit_softcapping)
    log_p = (z / temperature).log_softmax(-1)
    return log_p.gather(-1, ids), torch.special.entr(log_p.exp()).sum(-1)


def weighted_sum(log_probs, entropy):
    """A scalar in which every output has a weight of its own."""
    return (log_probs * torch.linspace(-1, 2, log_probs.numel()).view_as(log_probs)).sum() + (
        entropy * torch.linspace(1, 3, entropy.numel())
    ).sum()


def assert_same_as_dense(leaves, ids, tolerance=TIGHT, *, chunk_size, **options):
    hidden, weight, bias = leaves
    log_probs, same_ids, entropy = chunked_support_log_probs(
        hidden, weight, bias=bias, ids=ids, chunk_size=chunk_size, **options
    )
    expected = dense(hidden, weight, bias, ids, **options)
    assert torch.equal(same_ids, ids)
    torch.testing.assert_close(log_probs, expected[0], **tolerance)
    torch.testing.assert_close(entropy, expected[1], **tolerance)
    grads = torch.autograd.grad(weighted_sum(log_probs, entropy), leaves)
    for grad, expected_grad in zip(grads, torch.autograd.grad(weighted_sum(*expected), leaves), strict=True):
        torch.testing.assert_close(grad, expected_grad, **tolerance)


@every_chunk_size
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_log_probs_and_entropy_equal_the_dense_ones_in_value_and_gradient(transform, chunk_size):
    leaves = head_inputs()
    ids = torch.stack([torch.randperm(11)[:3] for _ in range(7)])
    assert_same_as_dense(leaves, ids, chunk_size=chunk_size, **TRANSFORMS[transform])


def test_float32_inputs_agree_to_1e_5():
    leaves = head_inputs(dtype=torch.float32)
    ids = torch.randint(11, (7, 3))
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    assert_same_as_dense(leaves, ids, tolerance, chunk_size=3, **TRANSFORMS["all of them"])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(0, 9),
    hidden=st.integers(1, 5),
    vocab=st.integers(1, 12),
    size=st.integers(1, 6),
    chunk_size=st.integers(1, 12),
    seed=st.integers(0, 10_000),
)
def test_every_shape_agrees_and_ids_may_repeat(n, hidden, vocab, size, chunk_size, seed):
    leaves = head_inputs(n, hidden, vocab, seed=seed)
    assert_same_as_dense(leaves, torch.randint(vocab, (n, size)), chunk_size=chunk_size, temperature=0.7)


@every_chunk_size
def test_its_own_top_k_are_the_most_probable_ids_in_descending_order(chunk_size):
    hidden, weight, bias = head_inputs()
    log_probs, ids, _ = chunked_support_log_probs(hidden, weight, bias=bias, top_k=4, chunk_size=chunk_size)
    expected = (hidden @ weight.T + bias).log_softmax(-1).topk(4, dim=-1)
    assert torch.equal(ids, expected.indices)
    torch.testing.assert_close(log_probs, expected.values, **TIGHT)
    grads = torch.autograd.grad(log_probs.exp().sum(), (hidden, weight, bias))
    expected_grads = torch.autograd.grad(expected.values.exp().sum(), (hidden, weight, bias))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, **TIGHT)


@pytest.mark.parametrize("options", [{"top_k": 3}, {"ids": torch.zeros(0, 3, dtype=torch.int64)}], ids=str)
def test_no_position_at_all_keeps_its_graph(options):
    hidden, weight, bias = head_inputs(n=0)
    log_probs, ids, entropy = chunked_support_log_probs(hidden, weight, bias=bias, **options)
    assert log_probs.shape == ids.shape == (0, 3)
    assert entropy.shape == (0,)
    (log_probs.sum() + entropy.sum()).backward()
    assert weight.grad.abs().max().item() == 0.0


def test_half_inputs_give_float32_within_the_error_of_their_dtype():
    leaves = [x.detach().bfloat16().requires_grad_() for x in head_inputs(16, 8, 32)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    ids = torch.randint(32, (16, 4))
    log_probs, _, entropy = chunked_support_log_probs(*leaves[:2], bias=leaves[2], ids=ids, chunk_size=5)
    expected = dense(*wide, ids)
    assert log_probs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(log_probs.double(), expected[0], rtol=0.02, atol=0.05)
    grads = torch.autograd.grad(log_probs.exp().sum(), leaves)
    for grad, expected_grad in zip(grads, torch.autograd.grad(expected[0].exp().sum(), wide), strict=True):
        assert grad.dtype == torch.bfloat16
        assert (grad.double() - expected_grad).norm() < 0.03 * expected_grad.norm()


def test_autocast_projects_in_bfloat16_and_gradients_come_back_in_float32():
    leaves = head_inputs(16, 8, 32, dtype=torch.float32)
    ids = torch.randint(32, (16, 4))
    with torch.autocast("cpu", torch.bfloat16):
        log_probs, _, _ = chunked_support_log_probs(*leaves[:2], bias=leaves[2], ids=ids, chunk_size=5)
    expected = dense(*leaves, ids)[0]
    assert log_probs.dtype == torch.float32
    assert 0 < (log_probs - expected).abs().max() < 0.1
    grads = torch.autograd.grad(log_probs.exp().sum(), leaves)
    for grad, expected_grad in zip(grads, torch.autograd.grad(expected.exp().sum(), leaves), strict=True):
        assert grad.dtype == torch.float32
        assert (grad - expected_grad).norm() < 0.03 * expected_grad.norm()


def test_a_frozen_head_gets_no_gradient_and_no_grad_builds_no_graph():
    hidden, weight, bias = head_inputs()
    weight.requires_grad_(False)
    log_probs, _, _ = chunked_support_log_probs(hidden, weight, bias=bias, top_k=3, chunk_size=3)
    log_probs.sum().backward()
    assert weight.grad is None
    assert hidden.grad.abs().max() > 0
    with torch.no_grad():
        same, ids, entropy = chunked_support_log_probs(hidden, weight, bias=bias, top_k=3, chunk_size=3)
    assert torch.equal(same, log_probs)
    assert not any(x.requires_grad for x in (same, ids, entropy))


def test_gradients_pass_gradcheck():
    leaves = head_inputs(4, 2, 5)
    ids = torch.tensor([[0, 1], [4, 2], [3, 3], [1, 0]])

    def outputs(hidden, weight, bias):
        log_probs, _, entropy = chunked_support_log_probs(
            hidden, weight, ids=ids, bias=bias, chunk_size=3, **TRANSFORMS["all of them"]
        )
        return log_probs, entropy

    assert torch.autograd.gradcheck(outputs, leaves)


def test_ids_and_top_k_exclude_each_other_and_one_is_needed():
    hidden, weight, _ = head_inputs()
    for options in ({}, {"ids": torch.zeros(7, 1, dtype=torch.int64), "top_k": 1}):
        with pytest.raises(ValueError, match=r"give exactly one of ids .* and top_k"):
            chunked_support_log_probs(hidden, weight, **options)


@pytest.mark.parametrize(
    ("top_k", "message"), [(0, "must be >= 1, got 0"), (12, "at most the vocabulary of 11, got 12")]
)
def test_top_k_out_of_range_is_refused(top_k, message):
    hidden, weight, _ = head_inputs()
    with pytest.raises(ValueError, match=message):
        chunked_support_log_probs(hidden, weight, top_k=top_k)


def test_ids_of_another_length_are_refused_where_a_gather_would_hide_it():
    hidden, weight, _ = head_inputs()
    for rows in (1, 9):
        with pytest.raises(ValueError, match=rf"ids must have one row for each of the 7 tokens, got \({rows},\) rows"):
            chunked_support_log_probs(hidden, weight, ids=torch.zeros(rows, 2, dtype=torch.int64))
