"""Let the teachers score completions: with the student's micro-batch, or ahead of it in batches of their own."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..models.forward import Head, read_head
from ..models.sharding import is_sharded
from ..teachers import ModelTeacher, Teacher
from ..teachers.scores import HiddenStates, LogProbs, Scores, check_no_images, merge, rows_of, select
from ..teachers.served import HIDDEN, LOG_PROBS, ServedTeacher
from .opd_config import OPDConfig
from .passes import logps_pass, teacher_pass
from .phases import timed
from .placement import load_teacher, own_teacher, prepare_teacher


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


def has_no_part(trainer, rows: Tensor | None) -> bool:
    """Can a teacher be left out? One that is sharded cannot, since other ranks may need this rank's share of it."""
    return rows is not None and not rows.any() and not is_sharded(trainer)


def forward(trainer, module: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Head]:
    """Hidden states `(b, T, H)` of the completions, inside the engine's forward of the teacher, and its head."""
    teacher = trainer.accelerator.unwrap_model(module)
    return trainer.run_inside(module, teacher_pass, teacher, inputs), read_head(teacher)


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


def needs_student_at_start(args: OPDConfig) -> bool:
    """Is the student at step 0 the reference model?"""
    return args.loss_extrapolation != 1.0 and args.reference_model_name_or_path is None


def build_reference(trainer, initial_copy: nn.Module | None) -> Teacher | None:
    """The reference model of an extrapolated loss, prepared with the engine; None where there is no extrapolation."""
    args = trainer.args
    if args.loss_extrapolation == 1.0:
        return None
    if args.reference_model_name_or_path is not None:
        reference = ModelTeacher(load_teacher(args.reference_model_name_or_path, args))
    else:
        reference = own_teacher(trainer, kind="base", rate=0.0, initial_copy=copy.deepcopy(initial_copy))
    if reference.model is not None:
        reference.model = prepare_teacher(trainer, reference)
    return reference


def token_logps(trainer, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Entries `(B, T)` of a generation batch: `reference_logps`, and `sampling_logps` where tokens are weighted.

    The sampler says itself what it sampled (vLLM); otherwise tokens are as likely as under the student that wrote
    them, which is scored where it will have moved on before the last step that uses them.
    """
    args, entries = trainer.args, {}
    if trainer.reference is not None:
        entries["reference_logps"] = score_tokens(trainer, trainer.reference, batch)
    if args.loss_importance_cap is not None:
        known = [batch[name] for name in ("sampling_per_token_logps", "old_per_token_logps") if name in batch]
        if known:
            entries["sampling_logps"] = known[0]
        elif args.gradient_accumulation_steps % (args.steps_per_generation * trainer.num_iterations):
            entries["sampling_logps"] = score_tokens(trainer, Teacher(), batch)
    return entries


@torch.no_grad()
def score_tokens(trainer, model: Teacher, batch: dict[str, Any]) -> Tensor:
    """Log-probabilities `(B, T)` of the completions after the student's own prompt, zero behind their end."""
    check_no_images(batch)
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    parts = []
    with model.scoring(trainer.model_wrapped) as module, trainer.accelerator.autocast():
        plain = trainer.accelerator.unwrap_model(module)
        for rows in torch.arange(len(batch["completion_ids"])).split(trainer.args.per_device_train_batch_size):
            inputs = {name: batch[name][rows] for name in names}
            parts.append(trainer.run_inside(module, logps_pass, plain, inputs, trainer.num_rows, trainer.loss_options))
    return torch.cat(parts)
