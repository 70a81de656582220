"""Let the teacher score completions: with the student's micro-batch, or ahead of it in batches of its own."""

from typing import Any

import torch
from torch import Tensor, nn

from ..diagnostics import broken_teacher_message
from .forward import MULTIMODAL_KEYS, Head, read_head
from .passes import teacher_pass


# Batch entries that the teacher's forward reads, one row per completion.
TEACHER_KEYS = (
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "teacher_prompt_ids",
    "teacher_prompt_mask",
)


def score_teacher(trainer, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Head]:
    """Hidden states `(B, T, H)` of the completions under the teacher, and its head.

    `model` is the student as the engine wrapped it. Hidden states that `score_ahead` left in the batch are taken.
    """
    if "teacher_hidden_states" in inputs:
        return inputs["teacher_hidden_states"], read_head(trainer.accelerator.unwrap_model(trainer.teacher.model))
    with trainer.teacher.scoring(model) as module, trainer.accelerator.autocast():
        teacher = trainer.accelerator.unwrap_model(module)
        return trainer._forward_redirection(module, teacher, teacher_pass, teacher, inputs), read_head(teacher)


def score_ahead(trainer, batch: dict[str, Any], rows_at_once: int) -> Tensor:
    """Hidden states `(B, T, H)` for a whole generation batch, `rows_at_once` completions per forward."""
    if any(key in batch for key in MULTIMODAL_KEYS):
        raise ValueError(
            "teacher_batch_size and teacher_offload do not take images, whose tensors cannot be cut by rows. Leave "
            "both unset, so that the teacher scores the student's micro-batches."
        )
    rows = {key: batch[key].split(rows_at_once) for key in TEACHER_KEYS if key in batch}
    with trainer.teacher.scoring(trainer.model_wrapped) as module, trainer.accelerator.autocast():
        teacher = trainer.accelerator.unwrap_model(module)
        parts = [
            trainer._forward_redirection(module, teacher, teacher_pass, teacher, dict(zip(rows, part, strict=True)))
            for part in zip(*rows.values(), strict=True)
        ]
    return torch.cat(parts)


def stop_at_broken_teacher(trainer, inputs: dict[str, Any], teacher_hidden_states: Tensor) -> None:
    """Raise FloatingPointError that names the rows in which a teacher's hidden states are not finite."""
    kept = inputs["loss_mask"].bool().unsqueeze(-1)
    finite = torch.where(kept, teacher_hidden_states, 0.0).isfinite().all(-1).all(-1)
    rows = (~finite).nonzero().flatten().tolist() or list(range(len(finite)))
    prompt = trainer._tokenizer.decode(inputs["prompt_ids"][rows[0]], skip_special_tokens=True)
    raise FloatingPointError(broken_teacher_message(trainer.state.global_step, rows, prompt))
