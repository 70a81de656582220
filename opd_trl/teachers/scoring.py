"""The state in which a teacher scores: no gradient, no dropout, no activation checkpointing; restored afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def scoring_mode(module: nn.Module) -> Iterator[nn.Module]:
    """Put `module` in evaluation mode without gradients, and give every submodule its own mode back.

    Evaluation mode switches dropout off and, in transformers, activation checkpointing too. Flags are restored one by
    one, since the module may be the student in the middle of training, with parts that its user froze.
    """
    training = [(part, part.training) for part in module.modules()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        for part, flag in training:
            part.training = flag
        for parameter, flag in requires_grad:
            parameter.requires_grad_(flag)
