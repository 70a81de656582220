"""A control: on-policy training in which the teacher only says which tokens are unlikely, not how unlikely."""

import math
from dataclasses import replace

from torch import Tensor

from ..losses.fused import distillation_loss
from ..losses.next_token import NextToken
from ..losses.objective import Objective, Tokens
from ..trainers.opd_trainer import OPDTrainer


# Teacher's probability below which a sampled token counts as unlikely.
UNLIKELY = 0.01


def constant_penalty(
    student: NextToken, teacher: NextToken, tokens: Tokens, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """sum_t w_t 1[q(y_t) < threshold] log p(y_t); figures per token are those of the configured loss.

    A policy gradient with the advantage -1 on sampled tokens that the teacher finds unlikely, and 0 on all others.

    Source: the idea is that of arXiv 2608.31046, where a constant negative advantage on unlikely tokens did as well as
    the teacher's own; the threshold is ours.
    """
    without_graph = replace(student, hidden_states=student.hidden_states.detach())
    _, stats = distillation_loss(without_graph, teacher, tokens, objective)
    log_q, log_p = (
        model.log_probs(ids=tokens.ids.unsqueeze(-1), temperature=objective.temperature)[0].squeeze(-1)
        for model in (teacher, student)
    )
    return (tokens.weights * (log_q < math.log(UNLIKELY)) * log_p).sum(), stats


class ConstantPenaltyTrainer(OPDTrainer):
    """OPDTrainer whose loss is [`constant_penalty`]."""

    distillation_loss = staticmethod(constant_penalty)
