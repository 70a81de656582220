"""Keys and values of the text that many rows begin with, computed once: a forward over the rows starts behind it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .own_forward import run_to_head


# Layers whose keys and values can be repeated for every row: not those of recurrent models, which keep a state.
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


class PrefixCache:
    """What a model keeps of a text: its keys and values.

    Args:
        model: a transformers model without wrappers, in evaluation mode.
        ids: `(P,)` int64, the text.

    Attributes:
        ids: the text.
        works: is it a cache of keys and values, as far as its layers say?
    """

    def __init__(self, model: nn.Module, ids: Tensor):
        self.ids, row = ids, ids.unsqueeze(0)
        _, outputs = run_to_head(model, input_ids=row, attention_mask=torch.ones_like(row), use_cache=True)
        self._cache = getattr(outputs, "past_key_values", None)
        # A family with a cache of its own keeps more than keys and values in it.
        self.works = type(self._cache) is DynamicCache and all(type(layer) in LAYERS for layer in self._cache.layers)

    def inputs(self, num_rows: int) -> dict[str, Any]:
        """Arguments of the model's forward over B rows that go on behind the text; the kept ones are not changed."""
        cache = copy.copy(self._cache)
        cache.layers = [repeated(layer, num_rows) for layer in cache.layers]
        return {"past_key_values": cache, "use_cache": True}


def repeated(layer: DynamicLayer, num_rows: int) -> DynamicLayer:
    """A layer that has the keys and values of one row for each of B rows, without a copy of them."""
    layer = copy.copy(layer)
    if layer.is_initialized:  # a model whose layers share their keys leaves some empty
        layer.keys, layer.values = (x.expand(num_rows, -1, -1, -1) for x in (layer.keys, layer.values))
    return layer
