"""Student and teacher side by side at every token that the student wrote: divergence, entropy, overlap.

Three checks read these figures: `prefixes`, `coverage` and `ranking`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...losses.fused import distillation_loss
from ...losses.mixture import Mixture
from ...losses.next_token import NextToken
from ...losses.objective import Objective, Tokens
from .rollouts import Rollout, Scored, quarters_of, score


# Positions at the head of a completion that are looked at one by one.
FIRST_PLACES = 8


@dataclass(frozen=True)
class PairFigures:
    """Both models at N tokens of the student's; every tensor is `(N,)`, on the CPU.

    Attributes:
        reverse_kl, forward_kl: over the whole vocabulary, nats.
        student_entropy, teacher_entropy: nats.
        overlap: of both TopK sets.
        outside: the teacher's probability outside the student's TopK.
        place: index of the token in its completion.
        quarter: 0 to 3, of the completion's kept tokens.
    """

    reverse_kl: Tensor
    forward_kl: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    overlap: Tensor
    outside: Tensor
    place: Tensor
    quarter: Tensor

    def by_quarter(self, name: str) -> list[float]:
        """Means of a figure by quarter of the completions; one without a token repeats the one before."""
        means: list[float] = []
        for quarter in range(4):
            values = getattr(self, name)[self.quarter == quarter]
            means.append(values.mean().item() if len(values) else means[-1])
        return means

    def by_place(self, name: str, *, least: int = 2) -> list[float]:
        """Means of a figure at each of the first positions that at least so many completions reach."""
        values = [getattr(self, name)[self.place == place] for place in range(FIRST_PLACES)]
        return [x.mean().item() for x in values if len(x) >= least]


def pair_figures(trainer, rollouts: Sequence[Rollout], *, on_batch: Callable[[], None] = lambda: None) -> PairFigures:
    """Compare both models token by token on rollouts of the student."""
    parts = []
    for rollout in rollouts:
        with torch.no_grad():
            parts += [figures_of(scored, trainer.objective) for scored in score(trainer, rollout)]
        on_batch()
    figures = PairFigures(*(torch.cat(part) for part in zip(*parts, strict=True)))
    if not len(figures.place):
        raise ValueError("no token of the student's answers can be compared with the teacher's. Look at its answers.")
    return figures


def figures_of(scored: Scored, objective: Objective) -> tuple[Tensor, ...]:
    """The fields of `PairFigures` for the tokens of one teacher, by the code of the loss."""
    forward = measure(scored.student, scored.teacher, objective, support="full")
    backward = measure(scored.student, scored.teacher, objective, support="full", divergence="forward_kl")
    _, _, entropy = scored.teacher.log_probs(
        top_k=1, temperature=objective.temperature, chunk_size=objective.chunk_size
    )
    on_support = measure(scored.student, scored.teacher, objective, support="student")
    kept = scored.kept
    figures = (
        forward["per_token_divergence"],
        backward["per_token_divergence"],
        forward["entropy"],
        entropy,
        on_support["overlap"],
        1 - on_support["teacher_mass"],
        torch.arange(kept.size(1), device=kept.device).expand_as(kept)[kept],
        quarters_of(kept),
    )
    return tuple(figure.cpu() for figure in figures)


def measure(
    student: NextToken,
    teacher: NextToken | Mixture,
    objective: Objective,
    *,
    support: str,
    divergence: str = "reverse_kl",
) -> dict[str, Tensor]:
    """Statistics of a divergence between two models, at the temperature of the loss."""
    plain = Objective(
        top_k=min(objective.top_k, student.head.weight.size(0)),
        support=support,
        divergence=divergence,
        beta=objective.beta,
        tail="drop",
        temperature=objective.temperature,
        chunk_size=objective.chunk_size,
    )
    weights = torch.ones(len(student), device=student.hidden_states.device)
    return distillation_loss(student, teacher, Tokens(weights), plain)[1]
