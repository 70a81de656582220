"""What is asked of student and teacher before the first step: does the loss read their own logits?"""

from torch import nn
from transformers import TrainerCallback

from ..models.agreement import PROBE_TOKENS, check_agreement, check_head
from ..models.forward import has_router_loss, vocabulary_rows
from .base import Host, scoring_mode
from .connect import probe_ids


class CheckInEngine(TrainerCallback):
    """Compare the logits of a student once its engine (DeepSpeed, FSDP2) has its weights, on all ranks."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        compare_student(self.trainer, self.trainer.model_wrapped)


def prepare_student(trainer) -> None:
    """Compare the student's logits with those of its own forward, and see whether it has a router loss.

    DeepSpeed and FSDP2 take the weights when training begins, so that there the comparison waits until then.

    Raises:
        ValueError: an adapter on the head, other logits, or a router loss that is wanted and is not there.
    """
    check_head(trainer.accelerator.unwrap_model(trainer.model))
    trainer.aux_loss_enabled = wants_router_loss(trainer)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        trainer.callback_handler.callbacks.insert(0, CheckInEngine(trainer))  # before one that writes
    else:
        compare_student(trainer, trainer.model)


def compare_student(trainer, model: nn.Module) -> None:
    """Compare the logits of the student as the engine has it, or before it has it."""
    with scoring_mode(model):
        rows = vocabulary_rows(trainer.model.config.get_text_config())
        compare_logits(trainer, model, rows, router_loss=trainer.aux_loss_enabled)


def compare_logits(
    host: Host, module: nn.Module, num_rows: int, *, window: int | None = None, router_loss: bool = False
) -> None:
    """Run `check_agreement` inside the engine's forward of `module`, which is ready to score.

    `num_rows` are the rows of its head that are compared, and `window` is its longest sequence.
    """
    ids = probe_ids(host.tokenizer, num_rows)[: min(PROBE_TOKENS, window or PROBE_TOKENS)]
    pad_id = host.tokenizer.pad_token_id
    options = {"pad_id": pad_id if pad_id < num_rows else 0, "router_loss": router_loss}
    with host.accelerator.autocast():
        host.run_inside(module, check_agreement, ids, num_rows, **options)


def wants_router_loss(trainer) -> bool:
    """Is there a router loss to add? TRL expects one of every family with such an option, its dense models included.

    Raises:
        ValueError: `router_aux_loss_coef` is given, and the student computes no router loss.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not trainer.aux_loss_enabled or has_router_loss(model):
        return trainer.aux_loss_enabled
    if trainer.args.router_aux_loss_coef:
        raise ValueError(
            f"router_aux_loss_coef={trainer.args.router_aux_loss_coef}, and the forward of "
            f"{model.config.model_type} computes no router loss. Set router_aux_loss_coef: 0, or leave it out."
        )
    return False
