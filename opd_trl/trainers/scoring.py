"""Log-probabilities of the sampled tokens besides the teacher's: of a reference model, and at sampling."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..models.forward import vocabulary_rows
from ..models.micro_batches import longest_first
from ..teachers import LiveTeacher, ModelTeacher, Teacher
from ..teachers.scores import select
from ..teachers.shared_prefix import SHARED, shared_tokens
from .config.opd_config import OPDConfig
from .passes import all_logps_pass, logps_pass
from .placement import load_teacher, own_teacher


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
        # An adapter of its own: that of an `ema` teacher moves.
        reference = own_teacher(
            trainer, kind="base", rate=0.0, initial_copy=copy.deepcopy(initial_copy), adapter="reference"
        )
    reference.prepare(trainer)
    return reference


def token_logps(trainer, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Entries `(B, T)` of a generation batch: `reference_logps`, and `sampling_logps` where tokens are weighted.

    The sampler says itself what it sampled (vLLM); otherwise tokens are as likely as under the student that wrote
    them, which is scored where it will have moved on before the last step that uses them, and where the loss has
    another temperature than sampling.
    """
    args, entries = trainer.args, {}
    if trainer.reference is not None:
        entries["reference_logps"] = score_tokens(trainer, trainer.reference, batch)
    if args.loss_importance_cap is not None:
        known = [batch[name] for name in ("sampling_per_token_logps", "old_per_token_logps") if name in batch]
        if known:
            entries["sampling_logps"] = known[0]
        elif args.reuses_generations or trainer.objective.temperature != trainer.temperature:
            entries["sampling_logps"] = score_tokens(trainer, LiveTeacher(), batch, temperature=trainer.temperature)
    return entries


def as_fused_model(trainer, model):
    """What TRL calls in place of a model for old and reference log-probabilities: it gives those of our own passes.

    TRL reads scale and cap from names in the configuration, and shifts the positions of rows that are padded.
    """
    if not isinstance(model, nn.Module):  # what our own loss puts there
        return model

    def call(input_ids, attention_mask, labels, fused_lm_head, **multimodal):
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "scored": labels[:, 1:] != -100}
        rows = vocabulary_rows(trainer.model.config.get_text_config())
        options = (rows, trainer.temperature, trainer.objective.chunk_size)
        log_probs, entropy = trainer.run_inside(model, all_logps_pass, inputs | multimodal, *options)
        return SimpleNamespace(log_probs=log_probs, entropy=entropy)

    return call


@torch.no_grad()
def score_tokens(trainer, model: Teacher, batch: dict[str, Any], *, temperature: float | None = None) -> Tensor:
    """Log-probabilities `(B, T)` of the completions after the student's own prompt, zero behind their end.

    At a temperature; by default that of the loss.
    """
    objective = trainer.objective if temperature is None else replace(trainer.objective, temperature=temperature)
    batch = trainer.shared_ids.readable(batch)
    own = {name: value for name, value in select(batch, None).items() if not name.startswith("teacher_")}
    own |= {SHARED: shared_tokens(batch["prompt_ids"], batch["prompt_mask"])}
    # In a tree there is no padding, and completions of one prompt, which stand side by side, share it.
    is_tree = model.prefix is not None and model.prefix.packs
    parts, order = [], torch.arange(len(batch["prompt_ids"])) if is_tree else longest_first(own)
    with model.scoring(trainer.model_wrapped) as module, trainer.accelerator.autocast():
        options = model.reading(trainer, module, own)
        for rows in order.split(trainer.args.per_device_train_batch_size):
            inputs = select(own, rows)
            parts.append(trainer.run_inside(module, logps_pass, inputs, trainer.shared_ids, objective, **options))
    return torch.cat(parts)[order.argsort()]
