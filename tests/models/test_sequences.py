import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opd_trl.models.sequences import completion_positions, computed_and_real, join, left_pad, longest_row
from opd_trl.trainers.teacher_prompts import check_lengths


sequences = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5)


@given(prompts=sequences, pad=st.integers(0, 9))
def test_padding_comes_from_lengths_even_where_prompts_contain_the_pad_id(prompts, pad):
    ids, mask = left_pad(prompts, pad_token_id=pad)
    for row, kept, prompt in zip(ids, mask.bool(), prompts, strict=True):
        assert row[kept].tolist() == prompt
        assert (row[~kept] == pad).all()
        assert kept.tolist() == sorted(kept.tolist())  # padding on the left


def test_the_completion_is_appended_unchanged_to_prompts_of_unequal_length():
    prompts, mask = left_pad([[5, 6, 7], [8]], pad_token_id=0)
    completions = torch.tensor([[1, 2], [3, 0]])
    ids, attention = join(prompts, mask, completions, torch.tensor([[1, 1], [1, 0]]))
    assert ids.tolist() == [[5, 6, 7, 1, 2], [0, 0, 8, 3, 0]]
    assert attention.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 0]]


@pytest.mark.parametrize("length", [1, 3])
def test_hidden_states_are_taken_one_position_before_the_token_that_they_predict(length):
    positions, first = torch.arange(7).view(1, 7, 1), torch.tensor([[7 - length - 1]])
    assert completion_positions(positions, first, length).flatten().tolist() == list(range(7 - length - 1, 6))


@given(prompts=sequences, answers=sequences)
def test_a_forward_reads_as_many_positions_as_the_longest_row_has_tokens(prompts, answers):
    rows = list(zip(prompts, answers, strict=False))
    _, prompt_mask = left_pad([prompt for prompt, _ in rows], pad_token_id=0)
    width = max(len(answer) for _, answer in rows)
    mask = torch.tensor([[1] * len(answer) + [0] * (width - len(answer)) for _, answer in rows])
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    assert longest_row(torch.cat([prompt_mask, mask], dim=1)).item() == longest
    computed, real = computed_and_real({"prompt_mask": prompt_mask, "completion_mask": mask}).tolist()
    assert (computed, real) == (longest * len(rows), sum(len(p) + len(a) for p, a in rows))


def test_an_over_long_teacher_prompt_is_an_error_with_row_and_length():
    check_lengths([[1, 2], [1, 2, 3]], ["row 0", "row 1"], limit=3)
    check_lengths([[1] * 999], ["row 0"], limit=None)
    with pytest.raises(ValueError, match="row 1 has 3 tokens, at most 2 fit"):
        check_lengths([[1, 2], [1, 2, 3]], ["row 0", "row 1"], limit=2)
