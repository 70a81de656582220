"""Does the teacher make sense of what the student writes? Token by token (mechanism 1 of arXiv 2605.11182)."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from .findings import NOTHING_TO_LEARN, OURS, PAPER, Finding
from .state import Preflight


# Mean overlap of both TopK sets on the student's text. The paper gives no figure, only that of two teachers of equal
# score the one with the higher overlap teaches better.
LOW_OVERLAP = 0.5
# Overlap in the last quarter of the completions against the first.
OVERLAP_KEPT = 0.8
# What the JSON holds of each token, as means over all tokens and by quarter.
FIGURES = ("reverse_kl", "forward_kl", "student_entropy", "teacher_entropy", "overlap", "outside")


def run(preflight: Preflight) -> list[Finding]:
    """Compare both models on the student's text."""
    figures = preflight.pairs()
    means = {name: getattr(figures, name).mean().item() for name in FIGURES}
    quarters = {name: figures.by_quarter(name) for name in FIGURES}
    preflight.details["tokens"] = {"count": len(figures.reverse_kl), "mean": means, "by_quarter": quarters}
    trainer = preflight.trainer
    return [
        judge_divergence(means["reverse_kl"], own_teacher=trainer.args.teaches_itself),
        judge_overlap(means["overlap"], trainer.args.loss_top_k),
        judge_drift(quarters["overlap"]),
    ]


def table(figures: dict[str, Any]) -> Table | None:
    """The figures by quarter of the completions."""
    if "tokens" not in figures:
        return None
    grid = Table("by quarter of the completion", box=None, pad_edge=False)
    for quarter in range(4):
        grid.add_column(str(quarter + 1), justify="right")
    for name, values in figures["tokens"]["by_quarter"].items():
        grid.add_row(name.replace("_", " "), *(f"{value:.3f}" for value in values))
    return grid


def judge_divergence(reverse_kl: float, *, own_teacher: bool) -> Finding:
    """Is there anything to learn on the student's own text?"""
    name, figure, threshold = "reverse KL", f"{reverse_kl:.4f} nats a token", f"above {NOTHING_TO_LEARN} ({OURS})"
    if reverse_kl >= NOTHING_TO_LEARN:
        sentence = "Student and teacher differ on the student's own text."
        return Finding(name, "ok", figure, sentence, threshold, value=reverse_kl)
    sentence = "The teacher gives the student's own distributions: there is nothing to learn."
    change = "privileged_context: one that changes the answers" if own_teacher else "teacher_model_name_or_path"
    return Finding(name, "stop", figure, sentence, threshold, change, reverse_kl)


def judge_overlap(overlap: float, top_k: int) -> Finding:
    """Do both models hold the same tokens likely where the student writes?"""
    figure, threshold = f"{overlap:.3f}", f"above {LOW_OVERLAP} ({OURS}; the higher the better, {PAPER})"
    name = f"Top-{top_k} overlap"
    if overlap >= LOW_OVERLAP:
        sentence = "Both models hold mostly the same tokens likely on the student's text."
        return Finding(name, "ok", figure, sentence, threshold, value=overlap)
    sentence = "On the student's text the teacher holds other tokens likely than the student does."
    change = "a teacher nearer to the student (an RLVR-adapted copy of it), or SFT on the teacher's text first"
    return Finding(name, "fix", figure, sentence, threshold, change, overlap)


def judge_drift(overlaps: Sequence[float]) -> Finding:
    """Does the teacher lose its way in what the student has written? Overlap by quarter of the completions."""
    kept = overlaps[-1] / overlaps[0] if overlaps[0] else 1.0
    name, figure = "overlap by quarter", " > ".join(f"{overlap:.3f}" for overlap in overlaps)
    threshold = f"last quarter at least {OVERLAP_KEPT} of the first ({OURS})"
    if kept >= OVERLAP_KEPT:
        sentence = "The overlap holds to the end of the completions."
        return Finding(name, "ok", figure, sentence, threshold, value=kept)
    sentence = "The overlap falls along the completions: the teacher reads prefixes that it would not write."
    change = "max_completion_length: shorter, or SFT on the teacher's text first, or an RLVR-adapted teacher"
    return Finding(name, "fix", figure, sentence, threshold, change, kept)
