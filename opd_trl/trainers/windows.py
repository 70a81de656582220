"""Prompt and completion fit what student and teachers can read: all rows before step 0, then each batch."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..data.row_checks import Checked, RowError, in_batch, maybe_too_long
from ..models.forward import window_of


#: Rows of a set that are tokenized to measure them: the longest of those that are not short enough by their bytes.
MOST_MEASURED, TOGETHER = 10_000, 256


def limit_of(trainer) -> tuple[int | None, str]:
    """Longest prompt of the student in tokens, and why; None where no model that reads it has a limit."""
    windows = {"student": window_of(trainer.model.config)}
    if not trainer.teacher_prompts.differ:
        windows |= {f"teacher{f' {name!r}' * bool(name)}": x.window for name, x in trainer.teachers.items()}
    known = {name: window for name, window in windows.items() if window is not None}
    if not known:
        return None, ""
    name = min(known, key=known.__getitem__)
    longest = trainer.max_completion_length
    return known[name] - longest, f"the {name}'s window of {known[name]} tokens less max_completion_length {longest}"


def check_windows(trainer) -> None:
    """Refuse rows whose prompt leaves no room for the completion, in the student's window or a teacher's.

    Only rows that have more bytes than there is room for tokens are tokenized.

    Raises:
        ValueError: naming the row.
    """
    checks, prompts = trainer.row_checks, trainer.teacher_prompts
    limit, _ = limit_of(trainer)
    for checked in checks.sets:
        for rows, names in _suspects(checked, checks.overhead, limit):
            lengths = checks.template.num_tokens([row["prompt"] for row in rows], checks.kwargs)
            refuse_longer(trainer, lengths, names.__getitem__)
        if prompts.differ and not checks.contexts_come_later and not checks.environment:
            for rows, names in _suspects(checked, checks.teacher_overhead, prompts.limit):
                prompts.token_ids(rows, names)


def _suspects(checked: Checked, overhead: int, limit: int | None):
    """Batches of rows that may be too long, with their names."""
    if limit is None:
        return
    found = maybe_too_long(checked.sizes, overhead=overhead, limit=limit, most=MOST_MEASURED)
    for start in range(0, len(found), TOGETHER):
        part = found[start : start + TOGETHER]
        yield [checked.rows[i] for i in part], [f"row {i} of the {checked.name} set" for i in part]


def check_batch_lengths(trainer, rows: Sequence[dict[str, Any]], prompt_mask: Tensor) -> None:
    """Refuse a batch with a prompt that is too long: of a stream, of an environment, of images."""
    refuse_longer(trainer, prompt_mask.sum(-1).tolist(), in_batch(rows))


def refuse_longer(trainer, lengths: Sequence[int], name: Callable[[int], str]) -> None:
    """Raise RowError for the first prompt of more tokens than fit; `name` is what errors call a row."""
    limit, why = limit_of(trainer)
    for row, length in enumerate(lengths):
        if limit is not None and length > limit:
            raise RowError(
                f"the prompt has {length} tokens, at most {limit} fit ({why})",
                "Lower max_completion_length, or filter the row out.",
                where=name(row),
            )
