"""Several teachers on one student's text: which one to take."""

from typing import Any

from ...preflight.flight import Flight
from ...preflight.prefixes import pair_figures
from ...preflight.teacher_answers import nll_under_student, teacher_answers
from ...scripts.subject import Subject
from ...teachers import ModelTeacher, shared_rows
from ...trainers.input_checks import check_teacher
from ...trainers.placement import load_teacher, prepare_teacher


FIGURES = ("overlap", "reverse_kl", "outside", "nll_of_teacher_text", "teacher")


def rank(flight: Flight, subject: Subject) -> list[dict[str, Any]]:
    """Figures of each teacher of `--teacher`, the best overlap first; one that is refused comes last, with why.

    They take the place of the trainer's own teacher, one at a time.
    """
    rows = [figures_of(flight, path, subject.student) for path in dict.fromkeys(subject.own.teacher)]
    return sorted(rows, key=lambda row: -1.0 if row["overlap"] is None else row["overlap"], reverse=True)


def figures_of(flight: Flight, path: str, student: str) -> dict[str, Any]:
    """One row of the ranking."""
    trainer, row = flight.trainer, {"name": path, "refused": None, **dict.fromkeys(FIGURES)}
    try:
        check_teacher(student, path, trainer.args, trainer.tokenizer, None)
    except (ValueError, OSError) as error:
        return row | {"refused": str(error)}
    teacher = ModelTeacher(load_teacher(path, trainer.args))
    config = teacher.model.config.get_text_config()
    student_rows = trainer.model.config.get_text_config().vocab_size
    trainer.num_rows = shared_rows(student_rows, config.vocab_size, trainer.tokenizer.get_vocab())
    teacher.model = prepare_teacher(trainer, teacher)
    trainer.teachers = {"": teacher}
    with flight.over_batches(f"{path} on the student's text") as done:
        figures = pair_figures(trainer, flight.rollouts, on_batch=done)
    with flight.over_batches(f"{path} answers") as done:
        answers = teacher_answers(
            trainer, flight.rollouts, continue_too=False, seed=trainer.args.seed, on_batch=done
        ).teacher
    row |= {name: getattr(figures, name).mean().item() for name in ("overlap", "reverse_kl", "outside")}
    row["nll_of_teacher_text"] = nll_under_student(trainer, flight.rollouts, answers)
    if flight.judge is not None:
        rows = [x for rollout in flight.rollouts for x in rollout.rows]
        scores = flight.judge([answer.text for answer in answers], rows)
        row["teacher"] = sum(scores) / len(scores)
    return row
