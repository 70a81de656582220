"""What all rows of a batch begin with is read once by a teacher, and once for the whole run where it is frozen."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn

from ..models.forward import causal_lm, completion_hidden_states, name_of
from ..models.multimodal import has_images
from ..models.packing import can_pack, spared_tokens
from ..models.prefix_cache import PrefixCache
from ..models.sequences import cut, join, left_padding, turn


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
    """Reads rows for one teacher, and computes once what they begin with.

    What all rows of a generation batch begin with is kept as keys and values. The rows of a forward, behind it, are a
    tree, so that what some of them share is computed once too, or else each row goes on from its own copy.

    Args:
        log: a logger that is told where a model cannot go on from a kept text.

    Attributes:
        works: do the hidden states behind the kept text equal those of whole rows? None: not tried yet.
        packs: do those of a tree? None: not tried yet.
    """

    def __init__(self, log: Any = logger):
        self.works: bool | None = None
        self.packs: bool | None = None
        self._log = log
        self._cache: PrefixCache | None = None
        self._moment: Any = None

    def read(
        self,
        model: nn.Module,
        prompt: tuple[Tensor, Tensor],
        batch: dict[str, Any],
        moment: Any,
        *,
        whole: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """Hidden states `(B, T, H)` of the completions of a micro-batch. Each way is first compared with whole rows.

        Args:
            model: unwrapped, in scoring mode, inside the engine's forward.
            prompt: ids and mask `(B, P)`, left-padded.
            batch: with `completion_ids`, `completion_mask` and `SHARED`.
            moment: the same as long as the teacher says the same.
            whole: gives the hidden states of whole rows; default: their forward, with the mask of their padding.
        """
        rows, count = join(*prompt, batch["completion_ids"], batch["completion_mask"]), batch["completion_ids"].size(1)

        def states(**options: Any) -> Tensor:
            return completion_hidden_states(model, *rows, count, multimodal={}, **options)[0]

        cache = self.cache(model, *prompt, int(batch[SHARED]), moment)
        packed = self.packs is not False and spares_tokens(causal_lm(model), *rows, cache)
        found = None if cache is None and not packed else states(prefix=cache, packed=packed)
        if found is not None and (self.packs if packed else self.works):
            return found
        whole = states() if whole is None else whole()
        kept = batch["completion_mask"].bool().to(whole.device)
        # Rows without a kept token, or with one that is NaN, show nothing: the next ones are compared.
        if found is None or not kept.any() or not whole[kept].isfinite().all():
            return whole
        if packed:
            self.packs = difference(found, whole, kept) is None
        if cache is not None and not (packed and self.packs):
            self.works = self._works(model, states(prefix=cache) if packed else found, whole, kept)
        # The same numbers as without a comparison, so that a run that is taken up again goes on exactly.
        return found if (self.packs if packed else self.works) else whole

    def cache(self, model: nn.Module, prompt_ids: Tensor, mask: Tensor, count: int, moment: Any) -> PrefixCache | None:
        """The kept first `count` tokens of these prompts `(B, P)`; None where there is none to be had.

        Raises:
            ValueError: the prompts do not begin with so many equal tokens.
        """
        if self.works is False or count < FEWEST:
            return None
        if count > shared_tokens(prompt_ids, mask):
            raise ValueError(f"{SHARED} is {count}, and these prompts begin with fewer equal tokens. Count them anew.")
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

    def _works(self, model: nn.Module, with_cache: Tensor, whole: Tensor, kept: Tensor) -> bool:
        error = difference(with_cache, whole, kept)
        if error is not None:
            self._give_up(model, f"with it its hidden states differ by {error:.2g} of their norm")
        return error is None

    def _give_up(self, model: nn.Module, why: str) -> None:
        self.works, self._cache = False, None
        self._log.warning(
            f"The text that all prompts share is read with each row: {name_of(causal_lm(model))} cannot go on from a "
            f"cache of it ({why}). The numbers are the same, and scoring takes longer."
        )


def spares_tokens(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, cache: PrefixCache | None) -> bool:
    """Is a tree of these rows `(B, L)` possible, and worth it?"""
    start, lengths = 0 if cache is None else len(cache.ids), attention_mask.sum(-1)
    longest = int(lengths.max())
    if not can_pack(model, longest - start, longest):
        return False
    if cache is not None:
        return True
    rows = cut(turn(input_ids, left_padding(attention_mask)), lengths)
    return spared_tokens(rows) >= max(FEWEST, int(lengths.sum()) // 4)


def difference(states: Tensor, whole: Tensor, kept: Tensor) -> float | None:
    """By how much of their norm hidden states `(B, T, H)` differ where `kept`; None where that is next to nothing."""
    a, b = states[kept].float(), whole[kept].float()
    error = ((a - b).norm() / b.norm().clamp(min=1e-30)).item()
    return None if error <= TOLERANCE[whole.dtype in (torch.float32, torch.float64)] else error


def holds_text_alone(batch: dict[str, Any]) -> bool:
    """Is it a batch of a trainer, without images?"""
    return SHARED in batch and not has_images(batch)
