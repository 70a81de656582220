import pytest

from opd_trl.teachers import check_same_vocabulary, shared_rows


def test_equal_width_is_not_equal_vocabulary():
    with pytest.raises(ValueError, match=r"2 tokens differ, e\.g\. 'a' \(0 / 1\).*GOLDTrainer"):
        check_same_vocabulary({"a": 0, "b": 1}, {"a": 1, "b": 0})


def test_a_token_that_one_side_lacks_is_named():
    with pytest.raises(ValueError, match=r"'<think>' \(absent / 1\)"):
        check_same_vocabulary({"a": 0}, {"a": 0, "<think>": 1})


def test_equal_heads_are_used_whole_and_padded_ones_are_cut_to_the_real_rows():
    vocab = {"a": 0, "z": 9}
    assert shared_rows(16, 16, vocab) == 16
    assert shared_rows(16, 32, vocab) == shared_rows(32, 16, vocab) == 10
    with pytest.raises(ValueError, match=r"uses 10 ids, but the heads have 8 \(student\) and 16"):
        shared_rows(8, 16, vocab)
