"""A tree of rows gives the hidden states of each row alone."""

import random

import pytest
import torch

from opd_trl.models import packing
from opd_trl.models.forward import completion_hidden_states
from opd_trl.models.prefix_cache import PrefixCache
from opd_trl.models.sequences import left_pad
from tests.families import zoo


HEAD = [7, 3, 9, 4, 8, 6]


def rows_with_common_beginnings() -> list[list[int]]:
    """Two answers to one question, one that goes on where another ends, an equal one, and others."""
    draw = random.Random(0)
    question = [draw.randrange(3, 20) for _ in range(9)]
    rows = [question + [draw.randrange(3, 20) for _ in range(n)] for n in (4, 11, 1)]
    return [*rows, [*rows[0], 5, 5], rows[1], [draw.randrange(3, 20) for _ in range(7)]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("most", [30, 1024])
def test_hidden_states_of_a_tree_are_those_of_rows_alone(attention, most, monkeypatch):
    """In one tree, and in several; with and without a kept text in front; left padding has no part in it."""
    monkeypatch.setattr(packing, "MOST", most)
    model = zoo.build("qwen3").eval()
    model.set_attn_implementation(attention)
    rows = [HEAD + row for row in rows_with_common_beginnings()]
    prompts, answers = [row[: len(HEAD) + 1] for row in rows], [row[len(HEAD) + 1 :] for row in rows]
    ids, mask = left_pad(prompts, pad_token_id=0)
    width = max(map(len, answers))
    answer_ids = torch.tensor([row + [0] * (width - len(row)) for row in answers])
    answer_mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in answers])
    both = torch.cat([ids, answer_ids], 1), torch.cat([mask, answer_mask], 1)
    calls, forward = [], model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda **x: calls.append(x["input_ids"].numel()) or forward(**x))
    with torch.no_grad():
        kept = PrefixCache(model, torch.tensor(HEAD))
        for prefix in (None, kept):
            calls.clear()
            states, _ = completion_hidden_states(model, *both, width, multimodal={}, prefix=prefix, packed=True)
            read = list(calls)
            for row, state, answer in zip(rows, states, answers, strict=True):
                alone = torch.tensor([row])
                wanted, _ = completion_hidden_states(model, alone, torch.ones_like(alone), len(answer), multimodal={})
                torch.testing.assert_close(state[: len(answer)], wanted[0], rtol=1e-4, atol=1e-5)
            own = [row[0 if prefix is None else len(HEAD) :] for row in rows]
            assert max(read) <= most
            if most == 1024:
                assert read == [sum(map(len, own)) - packing.spared_tokens(own)]


@pytest.mark.parametrize(
    ("family", "longest", "total", "possible"),
    [("qwen3", 8, 8, True), ("qwen3", 2000, 2000, False), ("mistral", 8, 8, True), ("mistral", 8, 10**6, False)],
)
def test_what_a_tree_cannot_hold(family, longest, total, possible):
    """Long rows, whose mask would be large, and what lies beyond the window of a layer."""
    model = zoo.build(family)
    if family == "mistral":
        model.config.sliding_window = 64
    assert packing.can_pack(model, longest, total) is possible


def test_attention_without_masks_takes_no_tree():
    model = zoo.build("qwen3")
    model.config._attn_implementation = "flash_attention_2"
    assert not packing.can_pack(model, 8, 8)
