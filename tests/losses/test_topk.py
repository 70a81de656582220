import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_trl.losses.support import SHORTEST_LONG_ROW, top_ids


@settings(max_examples=40, deadline=None)
@given(width=st.integers(SHORTEST_LONG_ROW, 9000), top_k=st.integers(1, 300), seed=st.integers(0, 99))
def test_long_rows_have_the_same_ids_in_the_same_order_as_torch(width, top_k, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.stack([torch.randperm(width, generator=generator) for _ in range(3)]).float()  # no ties
    assert torch.equal(top_ids(values, top_k), values.topk(top_k, dim=-1).indices)


@pytest.mark.parametrize("width", [5000, 4097, 4099])
def test_entries_in_the_remainder_of_a_row_are_found(width):
    values = torch.randn(2, width).clamp(max=5)
    values[0, -1], values[1, -2] = 10.0, 10.0
    assert top_ids(values, 3)[:, 0].tolist() == [width - 1, width - 2]


def test_equal_entries_give_a_set_of_equal_values():
    values = torch.randint(0, 4, (4, 6000)).to(torch.bfloat16)
    ids = top_ids(values, 20)
    assert all(len(set(row)) == 20 for row in ids.tolist())
    assert torch.equal(values.gather(-1, ids), values.topk(20, dim=-1).values)


def test_short_rows_and_large_k_fall_back_to_torch():
    for width, top_k in [(7, 7), (4096, 4096), (100, 3)]:
        values = torch.randn(2, width)
        assert torch.equal(top_ids(values, top_k), values.topk(top_k, dim=-1).indices)


def test_a_chunk_without_rows_has_no_ids():
    assert top_ids(torch.zeros(0, 5000), 4).shape == (0, 4)
