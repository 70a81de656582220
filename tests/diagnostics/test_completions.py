import random

import torch

from opd_trl.diagnostics import position_quartiles, repeated_trigrams, repetition


def batch(*rows):
    """Rows of different lengths, right-padded with zeros that are no token: ids and mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def test_quartiles_are_those_of_each_completions_own_length():
    _, mask = batch([1] * 8, [1] * 5, [1] * 2)
    quartile = position_quartiles(mask)
    assert quartile[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert quartile[1, :5].tolist() == [0, 0, 1, 2, 3]
    assert quartile[2, :2].tolist() == [0, 2]


def test_a_trigram_counts_from_its_second_place_on():
    #                    a  b  c  a  b  c  b  c  a
    ids, mask = batch([7, 8, 9, 7, 8, 9, 8, 9, 7])
    assert repeated_trigrams(ids, mask).int().tolist() == [[0, 0, 0, 0, 0, 1, 0, 0, 1]]


def test_padding_repeats_nothing_and_rows_do_not_see_each_other():
    ids, mask = batch([7, 8, 9, 0, 0, 0, 0], [7, 8, 9], [0, 0, 0, 0, 0, 0, 0])
    repeated = repeated_trigrams(ids, mask)
    assert not repeated[:2, :3].any()
    assert repeated[0].int().tolist() == [0, 0, 0, 0, 0, 0, 1]  # id 0 is a token here
    assert not repeated[1].any()
    assert repeated[2].int().tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_the_order_of_a_trigram_and_large_ids_matter():
    big = 2**21 - 1
    ids, mask = batch([1, 2, 3, 3, 2, 1], [big, big - 1, big, big - 1, big])
    assert repeated_trigrams(ids, mask).int().tolist() == [[0] * 6, [0, 0, 0, 0, 1, 0]]


def test_repeated_trigrams_are_those_that_a_set_has_seen():
    rows = [[random.Random(seed).randrange(3) for _ in range(5 + 7 * seed)] for seed in range(6)]
    ids, mask = batch(*rows)
    found = repeated_trigrams(ids, mask)
    for row, flags in zip(rows, found.tolist(), strict=True):
        seen = set()
        for t in range(2, len(row)):
            trigram = tuple(row[t - 2 : t + 1])
            assert flags[t] == (trigram in seen), (row, t)
            seen.add(trigram)
        assert not any(flags[:2])
        assert not any(flags[len(row) :])


def test_repetition_is_one_minus_distinct_over_all_trigrams():
    ids, mask = batch([7, 8, 9, 7, 8, 9, 8, 9, 7], [5] * 10, [1, 2, 3, 4], [1, 2])
    share = repetition(repeated_trigrams(ids, mask), mask)
    torch.testing.assert_close(share, torch.tensor([2 / 7, 7 / 8, 0.0, torch.nan]), equal_nan=True)


def test_a_completion_that_is_masked_out_whole_has_no_repetition():
    ids, mask = batch([5, 5, 5, 5])
    assert repetition(repeated_trigrams(ids, 0 * mask), 0 * mask).isnan().all()


def test_completions_of_one_or_two_tokens_are_fine():
    for width in (1, 2):
        ids = torch.ones(2, width, dtype=torch.int64)
        assert repeated_trigrams(ids, ids).shape == (2, width)
        assert position_quartiles(ids).shape[-1] == width
