"""Can student and teachers read the rows: do their lengths fit into each window and micro-batch?"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor

from ..data.row_checks import Checked, RowError, in_batch, maybe_too_long
from ..models.forward import window_of
from ..models.micro_batches import rows_that_fit
from ..models.sequences import spans
from ..models.sharding import is_sharded
from ..teachers.shared_prefix import FEWEST, SHARED, holds_text_alone
from ..teachers.text_ids import TEXT_MASK
from .images import as_read, check_sharded, with_images
from .rewards import rows_stay_for


logger = get_logger(__name__)

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


def check_readable(trainer) -> None:
    """Refuse, before a run, rows that cannot be read: too long, or on other layers than those of other ranks.

    Raises:
        ValueError: with the remedy.
    """
    check_windows(trainer)
    check_sharded(trainer)
    check_micro_batches(trainer)


def check_windows(trainer) -> None:
    """Refuse rows whose prompt leaves no room for the completion, in the student's window or a teacher's.

    Only rows that have more bytes than there is room for tokens are tokenized.

    Raises:
        ValueError: naming the row.
    """
    checks, prompts = trainer.row_checks, trainer.teacher_prompts
    limit, _ = limit_of(trainer)
    for checked in checks.sets:
        for rows, names in _suspects(trainer, checked, checks.overhead, limit):
            lengths = checks.template.num_tokens([row["prompt"] for row in rows], checks.kwargs)
            refuse_longer(trainer, lengths, names.__getitem__)
        if prompts.differ and not checks.contexts_come_later and not checks.environment:
            for rows, names in _suspects(trainer, checked, checks.teacher_overhead, prompts.limit):
                prompts.read(rows, names)


def _suspects(trainer, checked: Checked, overhead: int, limit: int | None):
    """Batches of rows that may be too long, as the trainer reads them, with their names."""
    if limit is None:
        return
    found = maybe_too_long(checked.sizes, overhead=overhead, limit=limit, most=MOST_MEASURED)
    for start in range(0, len(found), TOGETHER):
        part = found[start : start + TOGETHER]
        rows = as_read([checked.rows[i] for i in part], trainer.args.privileged_context_column)
        yield [with_images(row) for row in rows], [f"row {i} of the {checked.name} set" for i in part]


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


def check_micro_batches(trainer) -> None:
    """Refuse `micro_batch_tokens` where rows may not move; warn where the longest completion alone would not fit.

    Raises:
        ValueError: with the remedy.
    """
    budget, longest = trainer.args.micro_batch_tokens, trainer.max_completion_length
    if budget is None:
        return
    for name, other in rows_stay_for(trainer).items():
        raise ValueError(
            f"micro_batch_tokens={budget} with {name}: that loss depends on which rows share a micro-batch. Set "
            f"{other}, or leave micro_batch_tokens out and set per_device_train_batch_size."
        )
    if longest is not None and budget <= longest:
        logger.warning(
            f"micro_batch_tokens={budget}, and a completion may have {longest} tokens (max_completion_length): the "
            "first row that is longer than micro_batch_tokens stops the run. Set it to the longest prompt and "
            "completion together at least."
        )


def rows_within_budget(trainer, batch: dict[str, Any], order: Tensor) -> list[int]:
    """How many rows, in this order, each micro-batch has under `micro_batch_tokens`: equally many on all ranks.

    Raises:
        RowError: a row has more tokens, on any rank.
    """
    budget = trainer.args.micro_batch_tokens
    lengths = trainer.accelerator.gather(computed_tokens(trainer, batch)[order].unsqueeze(0)).amax(0).tolist()
    if max(lengths) > budget:
        raise RowError(
            f"micro_batch_tokens={budget} is below the longest row of this generation batch, which has {max(lengths)} "
            "tokens of prompt and completion",
            f"Set it to {max(lengths)} or more, or lower max_completion_length.",
        )
    return rows_that_fit(lengths, budget)


def computed_tokens(trainer, batch: dict[str, Any]) -> Tensor:
    """Tokens `(B,)` of each row in the longer of its two forwards, without those that a teacher has read of all rows.

    A teacher counts where it scores micro-batches and reads a prompt of its own.
    """
    tokens = spans(batch["prompt_mask"], batch["completion_mask"])
    every = (part for teacher in trainer.teachers.values() for part in teacher.parts)
    teachers = [teacher for teacher in every if not teacher.scores_ahead(trainer)]
    if not teachers or "teacher_prompt_mask" not in batch:
        return tokens
    reads_all = any(teacher.prefix is not None and teacher.prefix.works is False for teacher in teachers)
    shared = int(batch[SHARED]) if holds_text_alone(batch) and not (reads_all or is_sharded(trainer)) else 0
    shared = shared if shared >= FEWEST else 0
    read = batch.get(TEXT_MASK, batch["completion_mask"])  # by a teacher of another tokenizer, in its own tokens
    return torch.maximum(tokens, spans(batch["teacher_prompt_mask"], read) - shared)
