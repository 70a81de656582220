import pytest
import torch

from opd_trl.teachers import check_same_vocabulary, shared_rows
from opd_trl.teachers.vocabulary import SharedIds, compare_vocabularies


COMMON = {f"t{i}": i for i in range(200)}
SWAPPED = COMMON | {"t5": 7, "t7": 5}


def test_equal_width_is_not_equal_vocabulary():
    with pytest.raises(ValueError, match=r"2 tokens differ, e\.g\. 'a' \(0 / 1\).*Set teacher_vocabulary: text"):
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


@pytest.mark.parametrize(
    ("student", "teacher", "rows", "shared", "left_out"),
    [
        (COMMON, COMMON, (256, 256), (256, None), 0),  # equal: heads are used whole
        (COMMON, COMMON | {"<new>": 200}, (256, 256), (200, None), 0),  # a teacher with an added token
        (COMMON | {"<new>": 200}, COMMON, (208, 200), (200, None), 1),  # a student with one, heads of two widths
        (COMMON | {"<a>": 200}, COMMON | {"<b>": 200}, (256, 256), (200, None), 1),  # one id, two tokens
        (COMMON, SWAPPED, (256, 256), (200, [5, 7]), 2),
        (COMMON, COMMON | {"<new>": 200}, (200, 199), (199, None), 1),  # the teacher's head lacks a row
    ],
)
def test_the_ids_that_mean_the_same_token_are_compared(student, teacher, rows, shared, left_out):
    found = compare_vocabularies(student, teacher, *rows)
    num_rows, excluded = found.rows
    assert (num_rows, None if excluded is None else excluded.tolist(), found.left_out) == (*shared, left_out)
    assert bool(found.notes) == (student != teacher)


def test_what_is_left_out_and_an_end_token_that_differs_are_named():
    named = compare_vocabularies(
        COMMON | {"<end>": 200}, COMMON | {"<stop>": 200}, 256, 256, student_end="<end>"
    ).notes
    assert "200 of the student's 201 tokens (99.50%)" in named[0]
    assert "of the student's '<end>'; of the teacher's '<stop>'" in named[0]
    assert "'<end>', which the teacher does not know: the student does not learn from this teacher when" in named[1]
    other = compare_vocabularies(COMMON, SWAPPED, 256, 256, student_end="t1", teacher_end="t2").notes
    assert "'t1', which is not the teacher's 't2'" in other[1]
    assert len(compare_vocabularies(COMMON, SWAPPED, 256, 256, student_end="t1", teacher_end="t1").notes) == 1


def test_too_few_common_ids_are_refused_with_what_was_seen():
    most = {token: i for token, i in COMMON.items() if i < 190}
    with pytest.raises(ValueError, match=r"95\.0% of the student's ids .* auto needs 99%\). Set teacher_vocabulary"):
        compare_vocabularies(COMMON, most, 256, 256)
    assert compare_vocabularies(COMMON, most, 256, 256, choice="shared").num_rows == 190
    few = {token: i for token, i in COMMON.items() if i < 99}
    for choice in ("auto", "shared"):
        with pytest.raises(
            ValueError, match=r"101 tokens differ.* 49\.5% of the student's ids .*Set teacher_vocabulary: text"
        ):
            compare_vocabularies(COMMON, few, 256, 256, choice=choice)
    with pytest.raises(ValueError, match=r"same needs 100%\)"):
        compare_vocabularies(COMMON, SWAPPED, 256, 256, choice="same")


def test_several_teachers_are_compared_on_what_all_of_them_share():
    one, other = SharedIds(200, torch.tensor([5, 7]), False, 2), SharedIds(7, torch.tensor([3]), False, 1)
    num_rows, excluded = one.both(other).rows
    assert (num_rows, excluded.tolist()) == (7, [3, 5])
    assert SharedIds(9).both(SharedIds(9)) == SharedIds(9)


def test_a_teacher_is_never_given_an_id_that_it_does_not_know():
    batch = {"completion_ids": torch.tensor([[1, 5, 9], [2, 3, 4]]), "loss": 1}
    shared = SharedIds(6, torch.tensor([5]), is_whole=False)
    assert shared.knows(batch["completion_ids"]).tolist() == [[True, False, False], [True, True, True]]
    assert shared.readable(batch)["completion_ids"].tolist() == [[1, 4, 4], [2, 3, 4]]
    assert SharedIds(6).readable(batch) is batch
