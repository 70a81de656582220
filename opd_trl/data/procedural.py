"""Procedural tasks of reasoning-gym: as many rows as one asks for, without a hub, with a score of their own."""

import json
from typing import Any

from ..evaluation.boxes import last_boxed_answer
from ..evaluation.graded import graded_text
from ..spelling import did_you_mean
from .adapters import chat
from .files import DataError, Row
from .splits import prompt_key


def _library() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise DataError(
            "procedural tasks need reasoning-gym: pip install 'opd_trl[procedural]' (or pip install reasoning-gym)."
        ) from error
    return reasoning_gym


def task_names() -> list[str]:
    """The names of all tasks; raises DataError where reasoning-gym is not installed."""
    _library()
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def generate(task: str, *, count: int, seed: int, options: dict[str, Any] | None = None) -> tuple[list[Row], int]:
    """Rows of a task; the same ones for the same task, count, seed and options.

    Args:
        task: one of `task_names()`, e.g. `chain_sum`.
        count: rows asked for, before duplicates are dropped.
        seed: of the generator.
        options: of the task's own configuration, e.g. `{"min_terms": 2, "max_terms": 3}`.

    Returns:
        rows with `prompt` (messages), `answer`, `task` and `metadata` (JSON: what `procedural_score` needs), and the
        number of duplicates that were dropped.

    Raises:
        DataError: no such task, options that it does not have, a count below 1, a task whose score needs more than a
            file holds.
    """
    library = _library()
    if count < 1:
        raise DataError(f"--count must be at least 1, got {count}.")
    if task not in task_names():
        hint = did_you_mean(task, task_names(), otherwise="nothing is spelt like it.")
        raise DataError(f"{task!r} is not a task of reasoning-gym: {hint} `opd-trl data list --procedural` shows all.")
    try:
        entries = library.create_dataset(task, size=count, seed=seed, **(options or {}))
    except (TypeError, AssertionError, ValueError) as error:
        raise DataError(f"task {task!r} does not take {options!r}: {error}.") from error
    rows: dict[str, Row] = {}
    for entry in entries:
        row = {
            "prompt": chat(entry["question"]),
            "answer": "" if entry["answer"] is None else str(entry["answer"]),
            "task": task,
            "metadata": json.dumps(entry["metadata"], default=str, ensure_ascii=False),
        }
        rows.setdefault(prompt_key(row["prompt"]), row)
    _check_score(next(iter(rows.values())))
    return list(rows.values()), len(entries) - len(rows)


def _check_score(row: Row) -> None:
    """Some tasks compare with Python objects that no file holds: for them a right answer would count as wrong."""
    own = rf"\boxed{{{row['answer']}}}"
    if row["answer"] and procedural_score([own], [row["answer"]], [row["task"]], [row["metadata"]])[0] < 1:
        raise DataError(
            f"task {row['task']!r} cannot be scored from a file: its score calls its own answer wrong once the row "
            "has been written as JSON. Choose another task."
        )


def procedural_score(
    completions: list, answer: list[str], task: list[str], metadata: list[str], **kwargs: Any
) -> list[float]:
    r"""The task's own score of each completion's last box, from 0 to 1; some tasks give parts of a point.

    A reward function for `reward_funcs: [opd_trl.data.procedural_score]` of TRL's scripts and ours, and a measure. It
    needs reasoning-gym. Without a box the whole completion is scored.

    Args:
        completions: one text, or list of messages, per row.
        answer, task, metadata: the columns that `generate` writes.
        kwargs: other columns of the batch, not used.

    Raises:
        DataError: reasoning-gym is not installed.
    """
    library = _library()
    scores = []
    for completion, gold, name, data in zip(completions, answer, task, metadata, strict=True):
        text = graded_text(completion)
        boxed = last_boxed_answer(text).answer
        entry = {"answer": gold, "metadata": json.loads(data)}
        score = library.get_score_answer_fn(name)(answer=text.strip() if boxed is None else boxed, entry=entry)
        scores.append(float(score))
    return scores
