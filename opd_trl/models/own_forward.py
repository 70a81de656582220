"""A model's own forward without the product of its LM head: what goes into the head, and what happens behind it.

Families differ in what they do around their head, under names of their own: divide the hidden states, multiply or cap
the logits. So nothing is read from a configuration: a stand-in for the head keeps what it is given, and puts known
numbers in place of the logits, which show what the model does to them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..losses.head import LogitTransform


# What the stand-in puts out in place of logits. The first is so small that no cap changes it, the last so large that
# only a cap is left of it; powers of two are scaled without rounding.
PROBES = (2.0**-20, -1.0, 0.0, 1.0, 64.0, 2.0**60)
# What is known of the models that have run. Weak: it keeps no model alive.
TRANSFORMS: WeakKeyDictionary[nn.Module, LogitTransform] = WeakKeyDictionary()


class StandIn(nn.Module):
    """Takes the place of an LM head in a forward, keeps its input `(B, L, H)`, and puts out `PROBES` up to a width."""

    def __init__(self, head: nn.Module, width: int):
        super().__init__()
        self.heads = (head,)  # in a tuple, so that it is not part of this module
        self.width = width
        self.hidden_states: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The weight of the head, whose dtype some models ask for."""
        return self.heads[0].weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Keep the hidden states and return `(B, L, width)`."""
        if self.hidden_states is not None or hidden_states.ndim != 3:
            raise ValueError(f"its LM head is not called once for all positions. {REMEDY}")
        self.hidden_states = hidden_states
        head = self.heads[0]
        if isinstance(head, FSDPModule) and not torch.is_grad_enabled():
            # FSDP2 of a torch before 2.13 shards a unit of several modules again only when each of them has run. A
            # backward does so too, and scoring has none: the head runs on no token.
            head(hidden_states[:0])
        probes = hidden_states.new_empty((*hidden_states.shape[:-1], self.width), dtype=torch.float32)
        for i, value in enumerate(PROBES):
            probes[..., i :: len(PROBES)] = value
        return probes


def run_to_head(model: nn.Module, *, width: int = len(PROBES), **inputs: Any) -> tuple[Tensor, Any]:
    """What goes into the head, `(B, L, H)`, and the outputs of the model's forward, whose logits are of no use.

    Args:
        model: a transformers model without wrappers.
        width: of what stands in the place of the logits.
        inputs: of its forward.

    Raises:
        ValueError: a model without an LM head that its forward calls once, or with a trained scale behind it.
    """
    with stand_in(model, width) as head:
        outputs = model.forward(**inputs)
    if head.hidden_states is None:
        raise ValueError(f"the forward of {name_of(model)} does not call its LM head. {REMEDY}")
    if outputs.logits.requires_grad:
        raise ValueError(f"{name_of(model)} scales its logits by a weight that is trained. {REMEDY}")
    if model not in TRANSFORMS:
        TRANSFORMS[model] = transform_behind(outputs.logits[0, -1], model)
    return head.hidden_states, outputs


REMEDY = "This family cannot be trained or asked here; a teacher can be served by vLLM (teacher_server_url)."


@contextmanager
def stand_in(model: nn.Module, width: int) -> Iterator[StandIn]:
    """Put a `StandIn` in the place of the model's LM head."""
    head = model.get_output_embeddings()
    places = ((parent, name) for parent in model.modules() for name, x in parent._modules.items() if x is head)
    parent, name = next(places, (None, None))
    if head is None or parent is None:
        raise ValueError(f"{name_of(model)} has no LM head that could be read. {REMEDY}")
    parent._modules[name] = stand_in = StandIn(head, width)
    try:
        yield stand_in
    finally:
        parent._modules[name] = head


def logit_transform(model: nn.Module) -> LogitTransform:
    """What the model does to raw logits, at temperature 1; a model that has not run yet runs over one token.

    That one gives logits for the whole vocabulary, so that what differs from token to token is seen.
    """
    if model not in TRANSFORMS:
        with torch.no_grad():
            ids = torch.zeros(1, 1, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
            weight = model.get_output_embeddings().weight
            rows = getattr(weight, "ds_shape", weight.shape)[0]  # ZeRO-3 keeps the shape of what it has cut
            run_to_head(model, width=rows, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return TRANSFORMS[model]


def transform_behind(probed: Tensor, model: nn.Module) -> LogitTransform:
    """Scale and cap from what the model has made of `PROBES`.

    Raises:
        ValueError: the model does something else to its logits.
    """
    values = probed.float().cpu()
    raw = torch.tensor(PROBES).repeat(-(-len(values) // len(PROBES)))[: len(values)]
    scale, largest = (values[0] / raw[0]).item(), values[len(PROBES) - 1].item()
    cap = None if largest == scale * PROBES[-1] else largest
    found = LogitTransform(logit_scale=scale, final_logit_softcapping=cap)
    if not torch.allclose(found.apply(raw), values, rtol=1e-4):
        raise ValueError(f"{name_of(model)} does more to its logits than to scale and to cap them. {REMEDY}")
    return found


def name_of(model: nn.Module) -> str:
    """The model type and the class, as errors name them."""
    return f"{model.config.model_type} ({type(model).__name__})"
