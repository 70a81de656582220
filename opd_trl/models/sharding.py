"""Parameters that ZeRO-3 or FSDP2 keep in pieces, made whole for reading or writing."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import maybe_gather_lm_head_ctx


def whole(parameter: Tensor, *, write: bool = False) -> AbstractContextManager:
    """Context in which a parameter has its full shape on every rank; all ranks must enter it.

    Only ZeRO-3 parameters need one. FSDP2's are DTensors, whose arithmetic is right as it is.

    Args:
        parameter: of a model in the hands of any engine, or of none.
        write: keep what the first rank has written when the context ends.
    """
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if write else None)


def whole_heads(*tensors: Tensor | None) -> AbstractContextManager:
    """Context in which ZeRO-3 gathers these tensors of LM heads, read-only; all ranks must enter it.

    What is not in the engine's hands, as the head that a server has sent, is whole already.
    """
    return maybe_gather_lm_head_ctx(*(x for x in tensors if hasattr(x, "ds_status")))


@torch.no_grad()
def read_whole(parameter: Tensor) -> Tensor:
    """A copy of a parameter in its full shape, on the CPU; all ranks must call it."""
    with whole(parameter):
        return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().cpu().clone()


@torch.no_grad()
def write_whole(parameter: Tensor, value: Tensor) -> None:
    """Give a parameter, sharded or not, the full `value`; all ranks must call it."""
    with whole(parameter, write=True):
        value = value.to(device=parameter.device, dtype=parameter.dtype)
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.copy_(value)


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model in their full shapes, on the CPU, one at a time; all ranks must call it."""
    return {name: read_whole(x) for name, x in model.state_dict(keep_vars=True).items()}


def is_sharded(trainer) -> bool:
    """Does the engine keep a share of each weight on each rank (ZeRO-3, FSDP2)?"""
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    return trainer.is_fsdp_enabled


def shard_by_layers(accelerator, model: nn.Module) -> nn.Module:
    """Shard a model with FSDP2 as accelerate shards the student: layer by layer, from the weights of rank 0.

    TRL's `prepare_fsdp` makes it one unit, which is gathered whole to score.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        return prepare_fsdp(model, accelerator)
    names = ("auto_wrap_policy", "transformer_cls_names_to_wrap")
    of_student = {name: getattr(plugin, name) for name in names}
    plugin.transformer_cls_names_to_wrap = None  # the layers of this model
    try:
        model = fsdp2_prepare_model(accelerator, model)
    finally:  # the student, prepared later, may have layers of another class
        for name, value in of_student.items():
            setattr(plugin, name, value)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The head's unit waits for a backward to be sharded again, and a teacher has none.
            module.set_reshard_after_forward(True, recurse=False)
    return model


def prepare_frozen(trainer, model: nn.Module) -> nn.Module:
    """Hand a model that is not trained to the trainer's engine, as TRL does with GRPO's reference model."""
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return shard_by_layers(trainer.accelerator, model)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)


@torch.no_grad()
def move_towards(pairs: Iterable[tuple[Tensor, Tensor]], rate: float) -> None:
    """teacher <- (1 - rate) teacher + rate student, in place; a rate of 1 copies exactly."""
    for teacher, student in pairs:
        with whole(student), whole(teacher, write=True):
            teacher.lerp_(student.to(teacher.dtype), rate)
