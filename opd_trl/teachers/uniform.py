"""A teacher that holds every token equally likely: what a loss does without any knowledge in its teacher."""

from typing import Any

import torch
from torch import Tensor, nn

from ..losses.head import Head
from .base import Host, Teacher
from .scores import HiddenStates, Scores


class UniformTeacher(Teacher):
    """log q_v = -log V everywhere: hidden states of zeros read by a head of zeros."""

    can_write = False

    def score(self, host: Host, student: nn.Module, batch: dict[str, Any], rows: Tensor | None) -> Scores:
        ids = Scores(rows).select(batch["completion_ids"])
        head = Head(torch.zeros(self.num_rows, 1, device=ids.device))
        return HiddenStates(rows, torch.zeros(*ids.shape, 1, device=ids.device), head)

    def source(self, host: Host) -> str:
        return "uniform"
