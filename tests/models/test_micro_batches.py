"""Rows in micro-batches by length: every entry of a row goes where the row goes."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from opd_trl.models.micro_batches import by_length, row_lengths, rows_that_fit, spread


def micro_batches(lengths, size, **entries):
    """Micro-batches of rows 0, 1, ... with completions of these lengths, and each row's number in every entry."""
    rows = torch.arange(len(lengths))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    whole = {"prompt_mask": torch.ones(len(rows), 2), "completion_mask": mask, "row": rows, "total": torch.tensor(7)}
    whole |= {"nothing": None, "names": [f"row {i}" for i in rows.tolist()]} | entries
    return [
        {
            name: value if value is None or (torch.is_tensor(value) and value.ndim == 0) else value[i : i + size]
            for name, value in whole.items()
        }
        for i in range(0, len(rows), size)
    ]


def test_rows_share_a_micro_batch_with_rows_of_their_length_the_longest_first():
    found = by_length(micro_batches([3, 9, 1, 8, 2, 9], 2))
    assert [batch["row"].tolist() for batch in found] == [[1, 5], [3, 0], [4, 2]]
    for batch in found:
        assert batch["names"] == [f"row {i}" for i in batch["row"].tolist()]
        assert batch["completion_mask"].sum(-1).tolist() == [[3, 9, 1, 8, 2, 9][i] for i in batch["row"].tolist()]
        assert batch["total"] == 7
        assert batch["nothing"] is None


def test_rows_are_cut_where_they_are_told_to_be():
    found = by_length(micro_batches([3, 9, 1, 8, 2, 9], 2), sizes=lambda batch, order: [1, 2, 2, 1])
    assert [batch["row"].tolist() for batch in found] == [[1], [5, 3], [0, 4], [2]]


@given(some.lists(some.integers(1, 40), min_size=1, max_size=20), some.integers(40, 200), some.integers(1, 9))
def test_no_micro_batch_is_above_the_budget_and_none_could_take_the_next_row(lengths, budget, calls):
    sizes = rows_that_fit(lengths, budget)
    ends = [0, *itertools.accumulate(sizes)]
    assert ends[-1] == len(lengths)
    for start, end in itertools.pairwise(ends):
        assert 0 < (end - start) * max(lengths[start:end]) <= budget
        assert end == len(lengths) or (end - start + 1) * max(lengths[start : end + 1]) > budget
    found = spread(sizes, calls)
    assert len(found) == calls
    assert [*itertools.chain(*found)] == sizes
    assert found[-1]
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_what_the_teacher_reads_counts_too():
    prompts = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]])
    batch = {"prompt_mask": torch.ones(3, 1), "completion_mask": torch.ones(3, 2), "teacher_prompt_mask": prompts}
    assert row_lengths(batch).tolist() == [6, 8, 7]


@pytest.mark.parametrize("by_grid", [True, False])
def test_images_follow_their_rows(by_grid):
    """Two images in row 0, none in row 1, one in row 2, one in row 3; each image is filled with its row's number."""
    images = [[0, 0], [], [2], [3]]
    counts = [len(x) for x in images]
    patches = 2 if by_grid else 1
    batches = micro_batches([1, 4, 2, 3], 2)
    for i, batch in enumerate(batches):
        rows = images[2 * i : 2 * i + 2]
        batch["num_images"] = counts[2 * i : 2 * i + 2]
        batch["pixel_values"] = torch.tensor([[float(x)] for row in rows for x in row for _ in range(patches)])
        if by_grid:
            batch["image_grid_thw"] = torch.tensor([[1, 1, 2]] * sum(map(len, rows)))
    for batch in by_length(batches):
        expected = [float(x) for row in batch["row"].tolist() for x in images[row] for _ in range(patches)]
        assert batch["pixel_values"].flatten().tolist() == expected
        assert batch["num_images"] == [counts[row] for row in batch["row"].tolist()]
