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


def check_placement(trainer) -> None:
    """Refuse what a kind of teacher or an engine cannot do.

    Raises:
        ValueError: scoring ahead with the student's own weights or a moving teacher; offloading a sharded teacher.
    """
    args, teacher = trainer.args, trainer.teacher
    if args.teacher_rows_ahead is None:
        return
    fields = "teacher_offload" if args.teacher_offload else "teacher_batch_size"
    if teacher.model is None or teacher.moves:
        raise ValueError(
            f"{fields} needs a teacher with frozen weights of its own, and this one "
            f"{'is the student with other adapters' if teacher.model is None else 'moves with the student'}. Leave it "
            "unset: such a teacher scores the student's micro-batches."
        )
    if args.teacher_offload and (trainer.is_fsdp_enabled or is_zero3(trainer)):
        raise ValueError(
            "teacher_offload='cpu' moves a whole teacher, and this engine shards it. Use the engine's own offloading "
            "(offload_param_device: cpu, fsdp_offload_params: true), or ZeRO-2 or DDP."
        )


def is_zero3(trainer) -> bool:
    """Does DeepSpeed shard the weights?"""
    return trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3


def prepare_teacher(trainer, model: nn.Module) -> nn.Module:
    """Wrap the teacher as TRL wraps GRPO's reference model; an offloaded one stays a plain module on the CPU."""
    if trainer.args.teacher_offload:
        trainer.teacher.rest_on_cpu(trainer.accelerator.device)
        return model
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(model, trainer.accelerator)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)
