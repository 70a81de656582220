"""What all rows of a batch begin with is read once by a teacher, and once for the whole run where it is frozen."""

from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn

from ..models.forward import causal_lm, multimodal_inputs, name_of
from ..models.prefix_cache import PrefixCache
from ..models.sequences import left_padding, turn


logger = get_logger(__name__)

#: Entry of a generation batch, without a dimension: how many tokens all prompts of the teacher begin with.
SHARED = "shared_tokens"
#: Fewer are read with each row: a cache costs more than they do.
FEWEST = 64
#: A kept text is used although all rows have so many tokens more in common, which is often chance.
SPARE = 32
#: Largest difference of hidden states, with and without the cache, relative to them; by whether they have 32 bits.
TOLERANCE = {True: 1e-3, False: 5e-2}


def shared_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    """How many tokens all left-padded prompts `(B, P)` begin with; at most one less than the shortest one has.

    Example:
        >>> ids = torch.tensor([[0, 5, 6, 7, 8], [5, 6, 7, 9, 9]])
        >>> shared_tokens(ids, (ids > 0).long()).item()
        3
    """
    turned = turn(ids, left_padding(mask))
    same = (turned == turned[:1]).all(0).long().cumprod(0).sum()
    return torch.minimum(same, mask.sum(-1).min() - 1).cpu()


class SharedPrefix:
    """The text that rows begin with, as one teacher has read it.

    Attributes:
        works: do the hidden states behind the cache equal those of whole rows? None: not tried yet.
    """

    def __init__(self):
        self.works: bool | None = None
        self._cache: PrefixCache | None = None
        self._moment: Any = None

    def cache(self, model: nn.Module, prompt_ids: Tensor, mask: Tensor, count: int, moment: Any) -> PrefixCache | None:
        """The cache of the first `count` tokens of these prompts; None where there is none to be had.

        Args:
            model: plain, in scoring mode, inside the engine's forward.
            prompt_ids, mask: `(B, P)`, left-padded.
            count: how many tokens they have in common.
            moment: the same as long as the teacher says the same.
        """
        if self.works is False:
            return None
        start = int(left_padding(mask)[0])
        ids = prompt_ids[0, start : start + count]
        if not (self._cache is not None and moment == self._moment and self._begins(ids)):
            self._cache, self._moment = PrefixCache(causal_lm(model), ids), moment
            if not self._cache.works:
                self._give_up(model, "its layers keep no keys and values of single tokens")
                return None
        return self._cache

    def _begins(self, ids: Tensor) -> bool:
        """Do the prompts begin with the text that is kept, and share little beyond it?"""
        kept = self._cache.ids
        return 0 <= len(ids) - len(kept) <= SPARE and torch.equal(ids[: len(kept)], kept)

    def compare(self, model: nn.Module, with_cache: Tensor, whole: Tensor, kept: Tensor) -> None:
        """See whether hidden states `(B, T, H)` behind the cache are those of whole rows, where `kept` `(B, T)`.

        Rows without a kept token show nothing: the next ones are compared.
        """
        if not kept.any():
            return
        a, b = with_cache[kept].float(), whole[kept].float()
        error = ((a - b).norm() / b.norm().clamp(min=1e-30)).item()
        self.works = error <= TOLERANCE[whole.dtype in (torch.float32, torch.float64)]
        if not self.works:
            self._give_up(model, f"with it its hidden states differ by {error:.2g} of their norm")

    def _give_up(self, model: nn.Module, why: str) -> None:
        self.works, self._cache = False, None
        logger.warning(
            f"The text that all prompts share is read with each row: {name_of(causal_lm(model))} cannot go on from a "
            f"cache of it ({why}). The numbers are the same, and scoring takes longer."
        )


def reads_shared_prefix(batch: dict[str, Any]) -> bool:
    """Do the rows of a batch share enough, and hold text alone?"""
    return SHARED in batch and int(batch[SHARED]) >= FEWEST and not multimodal_inputs(batch)
