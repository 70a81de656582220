"""The products that only CUDA has, 16-bit factors with float32 results, stood in for on the CPU with CUDA's rules."""

import pytest
import torch

from opd_trl.losses import chunked_support_log_probs, chunked_support_loss, head
from tests.losses.test_chunked import DIVERGENCES, dense, in_float64, inputs, leaves
from tests.losses.test_chunked_log_probs import dense as dense_log_probs
from tests.losses.test_chunked_log_probs import head_inputs, weighted_sum


SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def mm(a, b, *, out_dtype):
    """`torch.mm` of CUDA: both factors in one dtype, 16 bits, to float32."""
    assert a.dtype == b.dtype
    assert a.dtype in SIXTEEN_BITS
    assert out_dtype == torch.float32
    return a.float() @ b.float()


def addmm(total, a, b, *, out_dtype, out):
    """`torch.addmm` of CUDA: the sum in the dtype of the result."""
    assert total.dtype == out_dtype == out.dtype
    return out.copy_(total + mm(a, b, out_dtype=out_dtype))


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Products of 16-bit numbers as CUDA computes them."""
    monkeypatch.setattr(head, "rounds_products", lambda matrix: matrix.dtype in SIXTEEN_BITS)
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch, "addmm", addmm)


def distance(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("support", ["student", "teacher", "intersection", "union", "full", "sampled"])
def test_16_bit_factors_give_the_loss_of_float32_logits(support, divergence):
    """Logits that are rounded to 16 bits miss it by 1e-3 and more."""
    for tail in ("drop", "renormalize"):
        arguments, keywords = inputs(n=16, hidden=8, vocab=200, dtype=torch.bfloat16)
        keywords["top_k"] = 20
        wide, wide_keywords = in_float64(arguments, keywords)
        options = {"support": support, "divergence": divergence, "tail": tail}
        loss, _ = chunked_support_loss(*arguments, **keywords, **options, chunk_size=5)
        expected, _ = dense(*wide, **wide_keywords, **options)
        assert loss.item() == pytest.approx(expected.item(), rel=2e-5)
        loss.backward()
        expected.backward()
        for leaf, wide_leaf in zip(leaves(arguments, keywords), leaves(wide, wide_keywords), strict=True):
            assert leaf.grad.dtype == torch.bfloat16
            assert distance(leaf.grad, wide_leaf.grad) < 0.006  # the gradient itself has 8 bits


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("tail", ["drop", "renormalize"])
def test_under_autocast_the_head_is_summed_in_float32(tail):
    arguments, keywords = inputs(n=16, hidden=8, vocab=200, dtype=torch.float32)
    wide, wide_keywords = in_float64(arguments, keywords)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = chunked_support_loss(*arguments, **keywords, tail=tail, chunk_size=5)
    expected, _ = dense(*wide, **wide_keywords, tail=tail)
    loss.backward()
    expected.backward()
    for leaf, wide_leaf in zip(leaves(arguments, keywords), leaves(wide, wide_keywords), strict=True):
        assert leaf.grad.dtype == torch.float32
        assert distance(leaf.grad, wide_leaf.grad) < 0.03  # of hidden states and head that are rounded to 8 bits


@pytest.mark.usefixtures("as_on_cuda")
def test_log_probs_come_from_float32_logits_too():
    leaves_of_head = head_inputs(16, 8, 200, dtype=torch.bfloat16)
    ids = torch.randint(200, (16, 4))
    wide = [x.detach().double().requires_grad_() for x in leaves_of_head]
    log_probs, _, entropy = chunked_support_log_probs(
        *leaves_of_head[:2], bias=leaves_of_head[2], ids=ids, chunk_size=5
    )
    expected = dense_log_probs(*wide, ids)
    torch.testing.assert_close(log_probs.double(), expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=0, atol=1e-5)
    weighted_sum(log_probs, entropy).backward()
    weighted_sum(*expected).backward()
    for leaf, wide_leaf in zip(leaves_of_head, wide, strict=True):
        assert distance(leaf.grad, wide_leaf.grad) < 0.006
