"""Rows that begin alike are computed once, and have the numbers of each row alone."""

import logging

import pytest
import torch

from opd_trl.serving.rows import RowReader
from tests import tiny
from tests.serving.test_scorer import build


HEAD = [10 + i % 90 for i in range(80)]
# float32, and the largest share of the norm that bfloat16 may be off.
TOLERANCE, NOISE = 1e-5, 0.02


@pytest.fixture
def model():
    return tiny.build_model(seed=1).eval()


@pytest.fixture
def computed(model) -> list[int]:
    """Tokens of each forward."""
    found = []
    model.model.register_forward_pre_hook(
        lambda _, __, inputs: found.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    return found


@torch.no_grad()
def alone(model, ids: list[int], count: int) -> torch.Tensor:
    """Hidden states that predict the last tokens, by the model itself."""
    return model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1 - count : -1]


def check(model, reader: RowReader, rows: list[list[int]], num_scored: list[int]) -> None:
    for states, ids, count in zip(reader.hidden_states(rows, num_scored), rows, num_scored, strict=True):
        torch.testing.assert_close(states, alone(model, ids, count), atol=TOLERANCE, rtol=0)


def with_head(*tails: list[int]) -> list[list[int]]:
    return [HEAD + tail for tail in tails]


def test_what_the_rows_of_a_forward_share_is_computed_once(model, computed):
    reader, rows = RowReader(model), with_head([5, 6, 7], [5, 6, 8, 9], [7] * 9)
    check(model, reader, rows, [2, 1, 8])  # whole rows too, once, to compare
    computed.clear()
    reader.hidden_states(rows[::-1], [8, 1, 2])
    assert sum(computed) == len(HEAD) + 3 + 2 + 9


def test_what_all_requests_begin_with_is_kept_from_one_forward_to_the_next(model, computed):
    reader = RowReader(model)
    for tail in ([5, 6, 7], [8, 9], [6, 6, 6, 6]):  # seen, seen again and kept, compared
        check(model, reader, with_head(tail), [1])
    computed.clear()
    reader.hidden_states(with_head([7, 8, 9, 10], [20, 21]), [2, 1])
    assert sum(computed) == 4 + 2
    check(model, reader, [[9] * 30, [*HEAD[:70], 5, 5]], [29, 60])  # others in between
    check(model, reader, with_head([5], [7, 7]), [1, 1])


def test_rows_that_share_nothing_are_computed_as_they_are(model, computed):
    reader = RowReader(model)
    check(model, reader, [[5, 6, 7], [8] * 70, [9]], [2, 69, 0])
    assert computed[0] == 3 * 70


def test_a_row_that_is_not_a_number_leaves_the_rows_beside_it_alone(model):
    reader, rows = RowReader(model), with_head([5, 6, 7], [8, 9], [5, 6])
    check(model, reader, rows, [1, 1, 1])
    assert reader.shared.packs
    model.model.embed_tokens.weight.data[99] = float("nan")
    spoilt = [*rows[:2], [*HEAD, 99, 5]]
    states = reader.hidden_states(spoilt, [2, 1, 1])
    assert states[2].isnan().all()
    for row, ids, count in zip(states, spoilt[:2], (2, 1), strict=False):
        torch.testing.assert_close(row, alone(model, ids, count), atol=TOLERANCE, rtol=0)


def test_a_row_that_is_not_a_number_does_not_decide_how_rows_are_read(model):
    model.model.embed_tokens.weight.data[99] = float("nan")
    reader = RowReader(model)
    reader.hidden_states(with_head([99, 5], [5, 6]), [1, 1])
    assert reader.shared.packs is None
    check(model, reader, with_head([5, 6, 7], [8, 9]), [1, 1])
    assert reader.shared.packs


def test_bfloat16_is_off_by_its_noise(model):
    rows, num_scored = with_head([5, 6, 7], [5, 6, 8, 9], [7] * 9), [3, 4, 9]
    exact = torch.cat([alone(model, ids, n) for ids, n in zip(rows, num_scored, strict=True)])
    model.bfloat16()
    reader = RowReader(model)
    for _ in range(3):
        states = torch.cat(reader.hidden_states(rows, num_scored)).float()
        assert (states - exact).norm() / exact.norm() < NOISE
    assert reader.shared.packs


def test_a_model_that_keeps_no_keys_reads_whole_rows_and_says_so(caplog):
    model = build("mamba")
    reader = RowReader(model)
    with caplog.at_level(logging.WARNING):
        for tail in ([5, 6, 7], [8, 9], [6, 6, 6]):
            (states,) = reader.hidden_states(with_head(tail), [1])
            expected = model.backbone(torch.tensor(with_head(tail))).last_hidden_state[0, -2:-1]
            torch.testing.assert_close(states, expected, atol=TOLERANCE, rtol=0)
    assert "is read with each row" in caplog.text
