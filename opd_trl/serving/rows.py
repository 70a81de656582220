"""Hidden states of rows of any requests: what they begin with is computed once, as by a teacher in the process."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..models.forward import completion_hidden_states
from ..models.packing import common
from ..models.sequences import completion_positions, join, left_padding, longest_row, turn
from ..teachers.shared_prefix import SHARED, SharedPrefix


logger = logging.getLogger(__name__)


class RowReader:
    """Reads rows with one frozen model.

    What some rows of a forward begin with is computed once. What all of them and a row of the forward before begin
    with, e.g. a context that all prompts share, is kept from one forward to the next.
    """

    def __init__(self, model: nn.Module):
        self.model, self.shared = model, SharedPrefix(logger)
        self.before: Sequence[int] = ()

    @torch.no_grad()
    def hidden_states(self, sequences: Sequence[Sequence[int]], num_scored: Sequence[int]) -> list[Tensor]:
        """Hidden states at the positions that predict the last tokens of each sequence.

        A row whose numbers are NaN or infinite leaves those of the others alone.

        Args:
            sequences: token ids.
            num_scored: n of each sequence, 0 <= n < its length.

        Returns:
            `(n, H)` of each, after the backbone's final norm, in the model's dtype, on the device of the embeddings.
        """
        device = self.model.get_input_embeddings().weight.device
        starts = [len(ids) - n for ids, n in zip(sequences, num_scored, strict=True)]
        prompts = [ids[:start] for ids, start in zip(sequences, starts, strict=True)]
        completions = [ids[start:] for ids, start in zip(sequences, starts, strict=True)]
        prompt = [x.to(device) for x in padded(prompts, side="left")]
        ids, mask = (x.to(device) for x in padded(completions, side="right"))
        batch = {"completion_ids": ids, "completion_mask": mask, SHARED: torch.tensor(self.head_of(prompts))}

        def whole() -> Tensor:
            return whole_rows(self.model, *join(*prompt, ids, mask), ids.size(1))

        states = self.shared.read(self.model, prompt, batch, None, whole=whole)
        if not states[mask.bool().to(states.device)].isfinite().all():
            # Attention of weight 0 to NaN is NaN: one row spoils those that are computed in one piece with it.
            states = whole()
        return [row[:n] for row, n in zip(states, num_scored, strict=True)]

    def head_of(self, prompts: Sequence[Sequence[int]]) -> int:
        """How many tokens these prompts, and one that was read before them, begin with; less than each of them has."""
        rows, self.before = [*prompts, self.before], prompts[-1]
        # In their order, what the first and the last one have in common is common to all.
        return min(common([min(rows, key=list), max(rows, key=list)])[1], min(map(len, prompts)) - 1)


def padded(rows: Sequence[Sequence[int]], *, side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask `(B, L)` int64 of rows with padding at one side.

    >>> padded([[5], [6, 7]], side="left")
    (tensor([[0, 5],
            [6, 7]]), tensor([[0, 1],
            [1, 1]]))
    """
    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    masks = map(torch.ones_like, ids)
    return tuple(pad_sequence(list(x), batch_first=True, padding_side=side) for x in (ids, masks))


def whole_rows(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, num_tokens: int) -> Tensor:
    """Hidden states `(B, T, H)` of completions, every row read from its first token on.

    Padded on the right, a causal model never sees the padding. A mask of ones says so without a (W, W) mask in
    memory, and positions are 0, 1, 2, ... for every architecture.

    Args:
        model: scores.
        input_ids, attention_mask: `(B, P + T)`, prompt left-padded, completion right-padded.
        num_tokens: T.
    """
    padding, width = left_padding(attention_mask), int(longest_row(attention_mask))
    ids = turn(input_ids, padding)[:, :width]
    states, _ = completion_hidden_states(model, ids, torch.ones_like(ids), width - 1, multimodal={})
    return completion_positions(states, input_ids.size(1) - num_tokens - 1 - padding, num_tokens)
