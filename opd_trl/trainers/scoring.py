"""Let the teachers score completions: with the student's micro-batch, or ahead of it in batches of their own."""

from typing import Any

import torch
from torch import Tensor, nn

from ..diagnostics import broken_teacher_message
from ..models.forward import MULTIMODAL_KEYS, Head, read_head
from ..teachers import Teacher
from ..teachers.scores import HiddenStates, LogProbs, Scores
from ..teachers.served import HIDDEN, LOG_PROBS, ServedTeacher
from .passes import teacher_pass
from .phases import timed
from .placement import is_sharded


# Batch entries that a teacher's forward reads, one row per completion.
TEACHER_KEYS = (
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "teacher_prompt_ids",
    "teacher_prompt_mask",
)


@timed("teacher")
def score_ahead(trainer, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Scores of a whole generation batch as entries of it, by the teachers that do not wait for micro-batches."""
    entries: dict[str, Tensor] = {}
    for index, teacher in enumerate(trainer.teachers.values()):
        rows = rows_of(batch, index)
        if not scores_ahead(trainer, teacher) or has_no_part(trainer, rows):
            continue
        check_no_images(batch)
        if isinstance(teacher, ServedTeacher):
            found = teacher.score(select(batch, rows), step=trainer.state.global_step)
        else:
            found = {HIDDEN: score_in_parts(trainer, teacher, batch, rows)}
        entries = found if rows is None else merge(entries, found, rows)
    return entries


@timed("teacher")
def score_micro_batch(trainer, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Scores]:
    """What each teacher says of a micro-batch; teachers without a row in it are left out.

    `model` is the student as the engine wrapped it.
    """
    scores: dict[str, Scores] = {}
    for index, (name, teacher) in enumerate(trainer.teachers.items()):
        rows = rows_of(inputs, index)
        if has_no_part(trainer, rows):
            continue
        if scores_ahead(trainer, teacher):
            scores[name] = read_ahead(trainer, teacher, inputs, rows)
            continue
        with teacher.scoring(model) as module, trainer.accelerator.autocast():
            if rows is None:
                scores[name] = HiddenStates(None, *forward(trainer, module, inputs))
                continue
            check_no_images(inputs)
            # A sharded teacher runs on every rank: with a row of another teacher where it has none.
            hidden_states, head = forward(trainer, module, select(inputs, rows if rows.any() else slice(1)))
            scores[name] = HiddenStates(rows, hidden_states[: rows.sum()], head)
    return scores


def scores_ahead(trainer, teacher) -> bool:
    """Does this teacher score whole generation batches?"""
    return isinstance(teacher, ServedTeacher) or trainer.args.teacher_rows_ahead is not None


def rows_of(batch: dict[str, Any], index: int) -> Tensor | None:
    """`(B,)` bool: the rows of the teacher at this place; None where one teacher has them all."""
    return batch["teacher_index"] == index if "teacher_index" in batch else None


def has_no_part(trainer, rows: Tensor | None) -> bool:
    """Can a teacher be left out? One that is sharded cannot, since other ranks may need this rank's share of it."""
    return rows is not None and not rows.any() and not is_sharded(trainer)


def select(batch: dict[str, Any], rows) -> dict[str, Any]:
    """What a teacher's forward reads, for some rows; None for all."""
    return {key: batch[key] if rows is None else batch[key][rows] for key in TEACHER_KEYS if key in batch}


def check_no_images(batch: dict[str, Any]) -> None:
    """Refuse images where a batch is cut by rows, as their tensors cannot be."""
    if any(key in batch for key in MULTIMODAL_KEYS):
        raise ValueError(
            "teacher_batch_size, teacher_offload, several teachers and served teachers do not take images, whose "
            "tensors cannot be cut by rows. Use one teacher in this process that scores the student's micro-batches."
        )


def forward(trainer, module: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Head]:
    """Hidden states `(b, T, H)` of the completions, inside the engine's forward of the teacher, and its head."""
    teacher = trainer.accelerator.unwrap_model(module)
    return trainer._forward_redirection(module, teacher, teacher_pass, teacher, inputs), read_head(teacher)


def score_in_parts(trainer, teacher: Teacher, batch: dict[str, Any], rows: Tensor | None) -> Tensor:
    """Hidden states `(b, T, H)` of a teacher's rows, `teacher_rows_ahead` rows of the batch per forward.

    A sharded teacher runs equally often on all ranks: with a row of another teacher where it has none.
    """
    parts = []
    everything = torch.arange(len(batch["completion_ids"]), device=batch["completion_ids"].device)
    with teacher.scoring(trainer.model_wrapped) as module, trainer.accelerator.autocast():
        for part in everything.split(trainer.args.teacher_rows_ahead):
            own = part if rows is None else part[rows[part]]
            if len(own) or is_sharded(trainer):
                hidden_states, _ = forward(trainer, module, select(batch, own if len(own) else part[:1]))
                parts.append(hidden_states[: len(own)])
    return torch.cat(parts)


def merge(entries: dict[str, Tensor], found: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Put one teacher's tensors `(b, T, ...)` into those of all `(B, T, ...)`, as wide as the widest needs."""
    merged = dict(entries)
    for name, values in found.items():
        old = entries.get(name, values[:0])
        shape = (len(rows), *values.shape[1:-1], max(values.size(-1), old.size(-1)))
        merged[name] = values.new_zeros(shape, dtype=torch.promote_types(values.dtype, old.dtype))
        merged[name][: len(old), ..., : old.size(-1)] = old
        merged[name][rows, ..., : values.size(-1)] = values.to(merged[name].dtype)
    return merged


def read_ahead(trainer, teacher, inputs: dict[str, Any], rows: Tensor | None) -> Scores:
    """The scores that `score_ahead` left in the batch for one teacher."""
    take = Scores(rows).select
    if isinstance(teacher, ServedTeacher):
        head = teacher.head
    else:
        head = read_head(trainer.accelerator.unwrap_model(teacher.model))
    if head is None:
        return LogProbs(rows, *(take(inputs[name]) for name in LOG_PROBS))
    return HiddenStates(rows, take(inputs[HIDDEN]), head)


def stop_at_broken_teacher(trainer, inputs: dict[str, Any], scores: dict[str, Scores]) -> None:
    """Raise FloatingPointError that names the rows in which a teacher's hidden states are not finite."""
    kept = inputs["loss_mask"].bool()
    finite = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
    for teacher in scores.values():
        own = teacher.is_finite(teacher.select(kept))
        finite = own if teacher.rows is None else finite.masked_scatter(teacher.rows, own)
    rows = (~finite).nonzero().flatten().tolist() or list(range(len(finite)))
    prompt = trainer._tokenizer.decode(inputs["prompt_ids"][rows[0]], skip_special_tokens=True)
    raise FloatingPointError(broken_teacher_message(trainer.state.global_step, rows, prompt))
