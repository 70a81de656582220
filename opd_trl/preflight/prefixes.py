"""The teacher on the student's text: token by token, and as the author of answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses.fused import distillation_loss
from ..losses.next_token import NextToken
from ..losses.objective import Objective, Tokens
from ..trainers.opsd_trainer import OPSDTrainer
from .findings import MODES_REMEDY, NOTHING_TO_LEARN, OURS, PAPER, Finding, finds_missing_modes
from .flight import Flight
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
    return PairFigures(*(torch.cat(part) for part in zip(*parts, strict=True)))


def figures_of(scored: Scored, objective: Objective) -> tuple[Tensor, ...]:
    """The fields of `PairFigures` for the tokens of one teacher, by the code of the loss."""
    forward = measure(scored.student, scored.teacher, objective, support="full")
    backward = measure(scored.teacher, scored.student, objective, support="full")
    on_support = measure(scored.student, scored.teacher, objective, support="student")
    kept = scored.kept
    figures = (
        forward["per_token_divergence"],
        backward["per_token_divergence"],
        forward["entropy"],
        backward["entropy"],
        on_support["overlap"],
        1 - on_support["teacher_mass"],
        torch.arange(kept.size(1), device=kept.device).expand_as(kept)[kept],
        quarters_of(kept),
    )
    return tuple(figure.cpu() for figure in figures)


def measure(student: NextToken, teacher: NextToken, objective: Objective, *, support: str) -> dict[str, Tensor]:
    """Statistics of the reverse KL between two models, at the temperature of the loss."""
    plain = Objective(
        top_k=min(objective.top_k, student.head.weight.size(0)),
        support=support,
        tail="drop",
        temperature=objective.temperature,
        chunk_size=objective.chunk_size,
    )
    weights = torch.ones(len(student), device=student.hidden_states.device)
    return distillation_loss(student, teacher, Tokens(weights), plain)[1]


# Mean overlap of both TopK sets on the student's text. The paper gives no figure, only that of two teachers of equal
# score the one with the higher overlap teaches better.
LOW_OVERLAP = 0.5


# Overlap in the last quarter of the completions against the first.
OVERLAP_KEPT = 0.8


# Teacher's probability outside the student's TopK: as a mean, and at the worst of the first positions.
UNCOVERED, UNCOVERED_AT_ONE_PLACE = 0.2, 0.5


def judge_divergence(reverse_kl: float, *, own_teacher: bool) -> Finding:
    """Is there anything to learn on the student's own text?"""
    figure, threshold = f"{reverse_kl:.4f} nats a token", f"above {NOTHING_TO_LEARN} ({OURS})"
    if reverse_kl >= NOTHING_TO_LEARN:
        sentence = "Student and teacher differ on the student's own text."
        return Finding("prefixes", "reverse KL", "ok", figure, sentence, threshold, value=reverse_kl)
    sentence = "The teacher gives the student's own distributions: there is nothing to learn."
    change = "privileged_context: one that changes the answers" if own_teacher else "teacher_model_name_or_path"
    return Finding("prefixes", "reverse KL", "stop", figure, sentence, threshold, change, reverse_kl)


def judge_overlap(overlap: float, top_k: int) -> Finding:
    """Do both models hold the same tokens likely where the student writes?"""
    figure, threshold = f"{overlap:.3f}", f"above {LOW_OVERLAP} ({OURS}; the higher the better, {PAPER})"
    name = f"Top-{top_k} overlap"
    if overlap >= LOW_OVERLAP:
        sentence = "Both models hold mostly the same tokens likely on the student's text."
        return Finding("prefixes", name, "ok", figure, sentence, threshold, value=overlap)
    sentence = "On the student's text the teacher holds other tokens likely than the student does."
    change = "a teacher nearer to the student (an RLVR-adapted copy of it), or SFT on the teacher's text first"
    return Finding("prefixes", name, "fix", figure, sentence, threshold, change, overlap)


def judge_drift(overlaps: Sequence[float]) -> Finding:
    """Does the teacher lose its way in what the student has written? Overlap by quarter of the completions."""
    kept = overlaps[-1] / overlaps[0] if overlaps[0] else 1.0
    figure = " > ".join(f"{overlap:.3f}" for overlap in overlaps)
    threshold = f"last quarter at least {OVERLAP_KEPT} of the first ({OURS})"
    if kept >= OVERLAP_KEPT:
        sentence = "The overlap holds to the end of the completions."
        return Finding("prefixes", "overlap by quarter", "ok", figure, sentence, threshold, value=kept)
    sentence = "The overlap falls along the completions: the teacher reads prefixes that it would not write."
    change = "max_completion_length: shorter, or SFT on the teacher's text first, or an RLVR-adapted teacher"
    return Finding("prefixes", "overlap by quarter", "fix", figure, sentence, threshold, change, kept)


def judge_coverage(outside: float, by_place: Sequence[float], *, top_k: int, divergence: str, support: str) -> Finding:
    """Does the teacher want tokens that the student never gives?

    Args:
        outside: the teacher's mean probability outside the student's TopK.
        by_place: the same at each of the first positions of a completion.
        top_k, divergence, support: of the loss.
    """
    place = max(range(len(by_place)), key=by_place.__getitem__, default=0)
    peak = max(by_place, default=0.0)
    figure = f"{outside:.3f} on average, {peak:.3f} at token {place + 1}"
    threshold = f"below {UNCOVERED} and {UNCOVERED_AT_ONE_PLACE} ({OURS})"
    name = f"teacher's mass outside the student's Top-{top_k}"
    if outside < UNCOVERED and peak < UNCOVERED_AT_ONE_PLACE:
        sentence = "What the teacher wants, the student already gives some probability."
        return Finding("coverage", name, "ok", figure, sentence, threshold, value=max(outside, peak))
    if finds_missing_modes(divergence, support):
        sentence = f"The teacher wants tokens that the student does not give; {divergence} on {support} finds them."
        return Finding("coverage", name, "ok", figure, sentence, threshold, value=max(outside, peak))
    sentence = "The teacher wants tokens that the student hardly ever gives, and this loss is nearly blind to them."
    return Finding("coverage", name, "fix", figure, sentence, threshold, MODES_REMEDY, max(outside, peak))


def prefixes(flight: Flight) -> None:
    """Mechanism 1 and coverage, token by token."""
    with flight.over_batches("Both models on the student's text") as done:
        figures = pair_figures(flight.trainer, flight.rollouts, on_batch=done)
    args = flight.trainer.args
    names = ("reverse_kl", "forward_kl", "student_entropy", "teacher_entropy", "overlap", "outside")
    means = {name: getattr(figures, name).mean().item() for name in names}
    quarters = {name: figures.by_quarter(name) for name in names}
    flight.details["tokens"] = {"count": len(figures.reverse_kl), "mean": means, "by_quarter": quarters}
    objective = {"divergence": args.divergence, "support": args.loss_support}
    flight.findings += [
        judge_divergence(means["reverse_kl"], own_teacher=isinstance(flight.trainer, OPSDTrainer)),
        judge_overlap(means["overlap"], args.loss_top_k),
        judge_drift(quarters["overlap"]),
        judge_coverage(means["outside"], figures.by_place("outside"), top_k=args.loss_top_k, **objective),
    ]
