"""Rows of one forward as a tree: what several rows begin with stands, and is computed, once."""

import inspect
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .own_forward import run_to_head
from .prefix_cache import PrefixCache


# Tokens of a tree: a mask of their square is laid out, and each attends to all of them.
MOST = 1024
# Attention that takes a mask of queries and keys.
MASKED = ("sdpa", "eager")
# Where configurations say how far a layer looks back: a mask of ours takes the place of the layers' own.
WINDOWS = ("sliding_window", "attention_chunk_size")


class Tree(NamedTuple):
    """B rows as T tokens, each behind the ones that it follows.

    Attributes:
        ids: `(T,)` int64.
        depth: `(T,)` int64, its place in its rows, from 0.
        sees: `(T, T)` bool, the tokens in front of it in its rows, and itself.
        places: `(B, L)` int64, where the tokens of each row stand; 0 behind its end.
    """

    ids: Tensor
    depth: Tensor
    sees: Tensor
    places: Tensor


def common(rows: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens each row has in common with the one in front of it.

    >>> common([[5, 6, 7], [5, 6, 8], [9]])
    [0, 2, 0]
    """
    found = [0] * min(1, len(rows))
    for one, two in pairwise(rows):
        count = next((i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
        found.append(count)
    return found


def tree_of(rows: list[list[int]]) -> Tree:
    """The tree of rows that are sorted, so that rows with the same beginning stand beside one another.

    Example:
        >>> tree = tree_of([[5, 6, 7], [5, 6, 8]])
        >>> tree.ids.tolist(), tree.depth.tolist(), tree.places.tolist()
        ([5, 6, 7, 8], [0, 1, 2, 2], [[0, 1, 2], [0, 1, 3]])
    """
    ids, depth, places = [], [], []
    for row, shared in zip(rows, common(rows), strict=True):
        behind = range(len(ids), len(ids) + len(row) - shared)
        places.append([*(places[-1][:shared] if shared else []), *behind])
        ids += row[shared:]
        depth += range(shared, len(row))
    sees = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for padded_row, place in zip(padded, map(torch.tensor, places), strict=True):
        padded_row[: len(place)] = place
        sees[place.unsqueeze(1), place] = torch.ones(len(place), len(place), dtype=torch.bool).tril()
    return Tree(torch.tensor(ids), torch.tensor(depth), sees, padded)


def parts(rows: list[list[int]]) -> Iterator[list[int]]:
    """The places of rows in the order of their tokens, cut so that the tree of each part has at most `MOST` tokens."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    part, size = [], 0
    for i, shared in zip(order, common([rows[i] for i in order]), strict=True):
        if part and size + len(rows[i]) - shared > MOST:
            yield part
            part, size, shared = [], 0, 0
        part.append(i)
        size += len(rows[i]) - shared
    yield part


def spared_tokens(rows: list[list[int]]) -> int:
    """Tokens that a tree of these rows does not compute again."""
    return sum(common(sorted(rows)))


def can_pack(model: nn.Module, longest: int, total: int) -> bool:
    """Can rows go through this model as a tree?

    Args:
        model: a transformers model without wrappers.
        longest: tokens of the longest row in the tree.
        total: the same with the text in front of it.
    """
    config = model.config.get_text_config()
    windows = [window for name in WINDOWS if (window := getattr(config, name, None))]
    return (
        model._supports_attention_backend
        and config._attn_implementation in MASKED
        and "position_ids" in inspect.signature(model.forward).parameters
        and longest <= MOST
        and total <= min(windows, default=total)
    )


def packed_hidden_states(model: nn.Module, rows: list[list[int]], prefix: PrefixCache | None) -> Tensor:
    """What goes into the head at each token of B rows, `(B, L, H)`; without meaning behind their ends.

    Args:
        model: a transformers model without wrappers, for which `can_pack` holds.
        rows: token ids, behind the text of `prefix`.
        prefix: of the text that all rows begin with, which is not read again; without gradients.
    """
    device, start = model.get_input_embeddings().weight.device, 0 if prefix is None else len(prefix.ids)
    width, states = max(map(len, rows)), [None] * len(rows)
    for part in parts(rows):
        tree = Tree(*(x.to(device) for x in tree_of([rows[i] for i in part])))
        mask = nn.functional.pad(tree.sees, (start, 0), value=True)
        if model.config.get_text_config()._attn_implementation == "eager":  # it adds the mask to its scores
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, torch.finfo(model.dtype).min)
        hidden_states, _ = run_to_head(
            model,
            input_ids=tree.ids[None],
            position_ids=start + tree.depth[None],
            attention_mask=mask[None, None],
            **({"use_cache": False} if prefix is None else prefix.inputs(1)),
        )
        places = nn.functional.pad(tree.places, (0, width - tree.places.size(1))).to(hidden_states.device)
        for i, row in zip(part, hidden_states[0][places], strict=True):
            states[i] = row
    return torch.stack(states)
