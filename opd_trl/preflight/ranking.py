"""Which of several teachers to take: each is put in the trainer's place for one, on the same text of the student."""

from typing import Any

from rich.table import Table
from rich.text import Text

from ..models.multimodal import has_images
from ..trainers.input_checks import check_teacher
from ..trainers.looks.pairs import pair_figures
from ..trainers.placement import model_teacher
from .findings import Finding, number
from .state import Preflight
from .teacher_answers import nll_under_student, teacher_answers


# What is known of each teacher -> its column in the table.
FIGURES = {
    "overlap": "overlap",
    "reverse_kl": "reverse KL",
    "outside": "outside",
    "nll_of_teacher_text": "NLL of its text",
    "teacher": "its answers",
}


def run(preflight: Preflight) -> list[Finding]:
    """Rank the teachers by overlap, the best first; one that is refused comes last, with why.

    It must be the last check: the trainer's own teacher is gone afterwards.
    """
    if preflight.teachers:
        rows = [figures_of(preflight, path) for path in dict.fromkeys(preflight.teachers)]
        rows.sort(key=lambda row: -1.0 if row["overlap"] is None else row["overlap"], reverse=True)
        preflight.details["ranking"] = rows
    return []


def table(figures: dict[str, Any]) -> Table | None:
    """The teachers side by side."""
    if "ranking" not in figures:
        return None
    grid = Table("teacher", box=None, pad_edge=False)
    for title in FIGURES.values():
        grid.add_column(title, justify="right")
    for row in figures["ranking"]:
        grid.add_row(row["name"], *(number(row[name]) for name in FIGURES))
        if row["refused"]:
            grid.add_row(Text(f"refused: {row['refused']}", "dim"))
    return grid


def figures_of(preflight: Preflight, path: str) -> dict[str, Any]:
    """One row of the ranking; `refused` says why a teacher cannot teach this student."""
    trainer, rollouts = preflight.trainer, preflight.rollouts
    row: dict[str, Any] = {"name": path, "refused": None, **dict.fromkeys(FIGURES)}
    if trainer.shared_ids.reads_text:
        return row | {"refused": "teachers of another tokenizer (teacher_vocabulary: text) are not ranked"}
    if any(has_images(rollout.batch) for rollout in rollouts):
        return row | {"refused": "teachers are not ranked on rows with images"}
    try:
        shared_ids = check_teacher(trainer.model, path, trainer.args, trainer.tokenizer, None)
    except (ValueError, OSError) as error:
        return row | {"refused": str(error)}
    teacher = model_teacher(path, trainer.args, shared_ids)
    teacher.prepare(trainer)
    trainer.shared_ids, trainer.teachers = teacher.shared_ids, {"": teacher}
    with preflight.over_batches(f"{path} on the student's text") as done:
        pairs = pair_figures(trainer, rollouts, on_batch=done)
    with preflight.over_batches(f"{path} answers") as done:
        answers = teacher_answers(trainer, rollouts, continue_too=False, seed=trainer.args.seed, on_batch=done)
    row |= {name: getattr(pairs, name).mean().item() for name in ("overlap", "reverse_kl", "outside")}
    row["nll_of_teacher_text"] = nll_under_student(trainer, rollouts, answers.teacher)
    if preflight.judge is not None:
        scores = preflight.judge([answer.text for answer in answers.teacher], answers.rows)
        row["teacher"] = sum(scores) / len(scores)
    return row
