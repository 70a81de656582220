"""A control: on-policy training in which the teacher only says which tokens are unlikely, not how unlikely."""

import math

from ..models.forward import token_log_probs
from ..teachers.scores import HiddenStates, Scores
from ..trainers.opd_trainer import OPDTrainer


# Teacher's probability below which a sampled token counts as unlikely.
UNLIKELY = 0.01


class ConstantPenalty(HiddenStates):
    """Policy gradient with the advantage -1 on sampled tokens that the teacher finds unlikely, and 0 on all others.

    Source: the idea is that of arXiv 2608.31046, where a constant negative advantage on unlikely tokens did as well as
    the teacher's own; the threshold is ours.
    """

    def loss(self, hidden_states, head, kept, weights, options):
        """sum_t w_t 1[q(y_t) < threshold] log p(y_t); statistics are those of the configured loss."""
        _, stats = super().loss(hidden_states.detach(), head, kept, weights, options)
        ids, teacher = options["completion_ids"], self.head.rows(head.weight.size(0))
        log_q, _ = token_log_probs(self.hidden_states[kept], teacher, ids, temperature=options["temperature"])
        log_p, _ = token_log_probs(hidden_states, head, ids, temperature=options["temperature"])
        return (weights * (log_q < math.log(UNLIKELY)) * log_p).sum(), stats


class ConstantPenaltyTrainer(OPDTrainer):
    """OPDTrainer whose teachers' scores have the loss of [`ConstantPenalty`]."""

    def teacher_scores(self, model, inputs) -> dict[str, Scores]:
        scores = super().teacher_scores(model, inputs)
        return {name: ConstantPenalty(found.rows, found.hidden_states, found.head) for name, found in scores.items()}
