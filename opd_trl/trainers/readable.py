"""Can student and teachers read the rows: their images, and their lengths within each window and micro-batch?"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor
from transformers import ProcessorMixin

from ..addresses import is_url
from ..data.row_checks import IMAGE_COLUMNS, Checked, RowError, in_batch, maybe_too_long
from ..models.forward import window_of
from ..models.micro_batches import rows_that_fit
from ..models.sequences import spans
from ..models.sharding import is_sharded
from ..teachers.shared_prefix import FEWEST, SHARED, holds_text_alone
from ..teachers.text_ids import TEXT_MASK
from .input_checks import column_names, model_config
from .opd_config import OPDConfig
from .rewards import rows_stay_for


logger = get_logger(__name__)

#: Columns and parts that GRPOTrainer does not bring to the model that is trained.
UNREAD = ("video", "videos", "audio", "audios")
#: Rows of a set that are tokenized to measure them: the longest of those that are not short enough by their bytes.
MOST_MEASURED, TOGETHER = 10_000, 256


def has_images(dataset) -> bool:
    """Does a data set bring images, in a column or in the parts of its first prompt?"""
    return any(name in IMAGE_COLUMNS for name in media(dataset))


def media(dataset) -> list[str]:
    """The columns of a data set, and the types of the parts of its first prompt that are not text."""
    columns = column_names(dataset) or []
    first = next(iter(dataset), {}) if "prompt" in columns else {}
    return [*columns, *other_parts(first.get("prompt", ""))]


def check_images(args: OPDConfig, datasets: dict[str, Any], processing_class, teachers: dict[str, Any]) -> None:
    """Refuse images that the student cannot read or that a teacher would not see, and what no model would be shown.

    Args:
        args: of the trainer.
        datasets: by name.
        processing_class: of the student.
        teachers: by name, from `named_teachers`; None where the student teaches itself.

    Raises:
        ValueError: with the remedy.
    """
    if isinstance(processing_class, ProcessorMixin):
        check_unread(datasets)
    name = next((name for name, dataset in datasets.items() if has_images(dataset)), None)
    if name is None:
        return
    if not isinstance(processing_class, ProcessorMixin):
        raise ValueError(
            f"the {name} set has images, and the student's processing_class is a {type(processing_class).__name__}, "
            "which reads text alone. Give a vision-language model with its processor as processing_class, or remove "
            f"the images ({' / '.join(IMAGE_COLUMNS)})."
        )
    cut = {
        "several teachers": list(teachers) != [""],
        "a served teacher": any(map(is_url, teachers.values())),
        "teacher_batch_size or teacher_offload": args.teacher_rows_ahead is not None,
        "loss_extrapolation": args.loss_extrapolation != 1.0,
        "teacher_vocabulary: text": args.teacher_vocabulary == "text",
    }
    for what in (what for what, wanted in cut.items() if wanted):
        raise ValueError(
            f"the {name} set has images, and {what} would need them cut by rows, which is not possible. Use one "
            "teacher in this process that scores the student's micro-batches, and no loss_extrapolation."
        )
    for teacher in teachers.values():
        if teacher is None:
            continue
        config = model_config(teacher, trust_remote_code=args.trust_remote_code, revision=args.teacher_model_revision)
        if config.get_text_config() is config:
            raise ValueError(
                f"the {name} set has images, and the teacher is a {config.model_type} model, which reads text alone: "
                "it would score the answers without the pictures. Choose a vision-language teacher with the student's "
                "image processing."
            )


def check_unread(datasets: dict[str, Any]) -> None:
    """Raise ValueError for sound and video, which are generated from and then left out of the training forward."""
    for name, dataset in datasets.items():
        for found in (x for x in media(dataset) if x in UNREAD):
            raise ValueError(
                f"the {name} set has {found!r}, and GRPOTrainer brings images alone to the model that is trained: "
                f"student and teacher would be scored without it. Remove {found!r}, or give single pictures of it as "
                "images."
            )


def other_parts(prompt: Any) -> list[str]:
    """The types of the parts of a prompt that are not text.

    >>> other_parts([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}])
    ['image']
    """
    turns = prompt if isinstance(prompt, list) else []
    parts = (part for turn in turns if isinstance(turn.get("content"), list) for part in turn["content"])
    return [part["type"] for part in parts if part["type"] != "text"]


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
