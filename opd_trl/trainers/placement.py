"""Load a teacher's own model and hand it to the engine that runs the student."""

from typing import Any

from torch import nn
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import create_model_from_path

from .config import OPDConfig


def load_teacher(path: str, args: OPDConfig) -> nn.Module:
    """Load a separate teacher, in the dtype of its checkpoint unless `teacher_model_init_kwargs` says otherwise."""
    kwargs: dict[str, Any] = {"dtype": "auto", "trust_remote_code": args.trust_remote_code}
    if args.teacher_model_revision is not None:
        kwargs["revision"] = args.teacher_model_revision
    return create_model_from_path(path, **kwargs | one_device(args) | (args.teacher_model_init_kwargs or {}))


def load_student_again(path: str, args: OPDConfig) -> nn.Module:
    """Load the student's checkpoint a second time: the frozen step-0 teacher of a full fine-tuning."""
    kwargs = {"trust_remote_code": args.trust_remote_code} | one_device(args) | dict(args.model_init_kwargs or {})
    return create_model_from_path(path, **kwargs)


def one_device(args: OPDConfig) -> dict[str, Any]:
    """In a distributed job every rank holds the whole model; `device_map="auto"` would take other ranks' GPUs."""
    return {"device_map": None} if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED") else {}


def prepare_teacher(trainer, model: nn.Module) -> nn.Module:
    """Wrap the teacher as TRL wraps GRPO's reference model."""
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(model, trainer.accelerator)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)
