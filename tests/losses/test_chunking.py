"""From a memory budget to slices of rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opd_trl.losses import chunk_size_for, chunked_support_log_probs, chunked_support_loss
from opd_trl.losses.head import block_size_for, chunks


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
