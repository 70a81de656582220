"""The LM head: its rows and logits, and from a memory budget to slices of tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opd_trl.losses import chunk_size_for, chunked_support_log_probs, chunked_support_loss
from opd_trl.losses.head import Head, block_size_for, chunks


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@given(num_tokens=st.integers(0, 2000), chunk_size=st.integers(1, 300))
def test_chunks_cover_every_row_once_in_order_and_differ_by_one_row_at_most(num_tokens, chunk_size):
    slices = chunks(num_tokens, chunk_size)
    assert [i for rows in slices for i in range(num_tokens)[rows]] == list(range(num_tokens))
    lengths = [rows.stop - rows.start for rows in slices]
    assert max(lengths) <= chunk_size
    assert max(lengths) - min(lengths) <= 1
    assert len(slices) == max(1, -(-num_tokens // chunk_size))  # no more products than needed


@pytest.mark.parametrize("vocab_size", [17, 49152, 151936, 262144])
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_the_logits_of_both_models_fit_in_the_budget(vocab_size, device):
    budget = {"cpu": 128, "cuda": 1024}[device.type] * 2**20
    size = chunk_size_for(vocab_size, device)
    assert size * 2 * 4 * vocab_size <= budget < (size + 1) * 2 * 4 * vocab_size
    assert 1 <= block_size_for(vocab_size, device) < size


def test_a_budget_of_its_own_wins_and_one_token_always_fits():
    assert chunk_size_for(1000, CUDA, budget=80_000) == 10
    assert chunk_size_for(10**6, CPU, budget=1) == 1


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_a_chunk_size_below_one_is_refused(chunk_size):
    hidden, head = torch.randn(2, 3), torch.randn(5, 3)
    message = f"chunk_size must be >= 1, got {chunk_size}. Leave it out"
    with pytest.raises(ValueError, match=message):
        chunked_support_loss(hidden, head, hidden, head, torch.ones(2), top_k=2, chunk_size=chunk_size)
    with pytest.raises(ValueError, match=message):
        chunked_support_log_probs(hidden, head, top_k=2, chunk_size=chunk_size)


def test_the_first_rows_of_a_head_are_views_and_keep_its_conventions():
    """Views, never the parameter: its memory is given back under ZeRO-3 while a view still holds what was gathered."""
    weight, bias = torch.randn(5, 3, requires_grad=True), torch.randn(5)
    head = Head(weight, bias, logit_scale=0.5, final_logit_softcapping=3.0)
    for num_rows in (5, 3):
        cut = head.rows(num_rows)
        assert cut.weight is not weight
        assert torch.equal(cut.weight, weight[:num_rows])
        assert torch.equal(cut.bias, bias[:num_rows])
        assert cut.weight.data_ptr() == weight.data_ptr()
        assert cut.transform(1.3) == head.transform(1.3) == (1.3, 0.5, 3.0, None)
        cut.weight.sum().backward()
    assert weight.grad[:, 0].tolist() == [2.0, 2.0, 2.0, 1.0, 1.0]
    assert not head.detach().weight.requires_grad
    assert Head(weight).rows(3).bias is None


def test_the_embedding_adds_to_the_gradient_of_a_tied_head_and_no_third_one_is_made():
    weight = torch.randn(11, 3, requires_grad=True)
    hidden, teacher = torch.nn.functional.embedding(torch.arange(4), weight), torch.randn(11, 3)
    loss, _ = chunked_support_loss(hidden, Head(weight).rows(11).weight, hidden, teacher, torch.ones(4), top_k=2)
    formed = loss.grad_fn.grads[1].data_ptr()
    loss.backward()
    assert weight.grad.data_ptr() == formed


def test_a_sharded_head_is_gathered_whole():
    class Sharded(torch.Tensor):
        def full_tensor(self):
            return 2 * self.as_subclass(torch.Tensor)

    weight = torch.randn(5, 3)
    assert torch.equal(Head(weight.as_subclass(Sharded)).rows(2).weight, 2 * weight[:2])


def test_raw_outputs_are_scaled_capped_and_tempered_in_this_order_and_the_chain_is_its_derivative():
    transform = Head(torch.eye(2), logit_scale=0.5, final_logit_softcapping=3.0).transform(1.3)
    raw = torch.tensor([[4.0, -9.0]], dtype=torch.float64, requires_grad=True)
    logits = transform.apply(raw)
    torch.testing.assert_close(logits, 3 * torch.tanh(0.5 * raw / 3) / 1.3)
    incoming = torch.tensor([[2.0, 5.0]], dtype=torch.float64)
    (expected,) = torch.autograd.grad(logits, raw, incoming)
    torch.testing.assert_close(transform.chain(incoming, logits), expected)
