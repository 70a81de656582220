"""Does the teacher make sense of what the student writes? Token by token (mechanism 1 of arXiv 2605.11182)."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from .findings import INFO, NOTHING_TO_LEARN, OURS, Finding
from .state import Preflight


ANOTHER_TEACHER = "another teacher: teacher_model_name_or_path, teacher_server_url"
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
        overlap(means["overlap"], trainer.args.loss_top_k),
        drift(quarters["overlap"]),
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
    change = "privileged_context: one that changes the answers" if own_teacher else ANOTHER_TEACHER
    return Finding(name, "stop", figure, sentence, threshold, change, reverse_kl)


def overlap(mean: float, top_k: int) -> Finding:
    """Do both models hold the same tokens likely where the student writes?

    The paper says that of two teachers of equal score the one with the higher overlap teaches better, and gives no
    figure; in our study it did not tell runs that worked from runs that failed.
    """
    sentence = "Share of their likeliest tokens that both models have in common on the student's text."
    return Finding(f"Top-{top_k} overlap", INFO, f"{mean:.3f}", sentence, value=mean)


def drift(overlaps: Sequence[float]) -> Finding:
    """The overlap by quarter of the completions; its value is the last over the first."""
    kept = overlaps[-1] / overlaps[0] if overlaps[0] else 1.0
    figure = " > ".join(f"{value:.3f}" for value in overlaps)
    sentence = "The same along the completions: where it falls, the teacher reads what it would not write."
    return Finding("overlap by quarter", INFO, figure, sentence, value=kept)
