"""Find the teachers, build them, and hand their own models to the engine that runs the student."""

from typing import Any

import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import get_config_model_id

from ..teachers import ModelTeacher, Teacher, TeacherServerError, self_teacher, shared_rows
from .checks import check_teacher, text_config
from .config import OPDConfig
from .config_checks import is_url
from .loading import load_student_again, load_teacher
from .served import ServedTeacher, connect


# The first torch whose `fully_shard` takes weights that are integers.
FSDP_SHARDS_INTEGERS = "2.12"


def find_teachers(named: dict[str, Any], model, args: OPDConfig, tokenizer, teacher_tokenizer) -> dict[str, Any]:
    """Check each teacher and connect to those that are served; before anything is loaded or written.

    Args:
        named: from `named_teachers`.
        model: the student.
        args: of the trainer.
        tokenizer, teacher_tokenizer: of the student; of the teachers, where a path does not tell.
    """
    rows = text_config(model, trust_remote_code=args.trust_remote_code).vocab_size
    found = {}
    for name, teacher in named.items():
        try:
            if is_url(teacher):
                local_copy = args.teacher_model_name_or_path if args.teacher_server_url is not None else None
                found[name] = connect(teacher, args, tokenizer=tokenizer, student_rows=rows, local_copy=local_copy)
            else:
                check_teacher(model, teacher, args, tokenizer, teacher_tokenizer)
                found[name] = teacher
        except (ValueError, TeacherServerError) as error:
            if not name:
                raise
            kind = TeacherServerError if isinstance(error, TeacherServerError) else ValueError
            raise kind(f"teacher {name!r}: {error}") from error
    return found


def build_teacher(found, args: OPDConfig) -> Teacher | ServedTeacher:
    """The teacher that `find_teachers` found, with its model loaded."""
    if isinstance(found, ServedTeacher):
        return found
    return ModelTeacher(load_teacher(found, args) if isinstance(found, str) else found)


def own_teacher(trainer, *, kind: str, rate: float, initial_copy: nn.Module | None) -> Teacher:
    """A teacher made of the student; see `self_teacher`."""
    student = trainer.accelerator.unwrap_model(trainer.model)
    if initial_copy is None and kind != "live" and not hasattr(student, "peft_config"):
        initial_copy = load_student_again(get_config_model_id(student.config), trainer.args)
    return self_teacher(student, kind=kind, update_rate=rate, initial_copy=initial_copy)


def check_placement(trainer) -> None:
    """Refuse what a kind of teacher or an engine cannot do.

    Raises:
        ValueError: a quantized teacher under ZeRO-3, offloaded, or under FSDP2 of an old torch; scoring ahead with the
            student's own weights or a moving teacher; offloading a sharded teacher.
    """
    args = trainer.args
    teachers = [teacher for teacher in trainer.teachers.values() if isinstance(teacher, Teacher)]
    if any(getattr(teacher.model, "is_quantized", False) for teacher in teachers):
        check_quantized(trainer)
    if args.teacher_rows_ahead is None:
        return
    fields = "teacher_offload" if args.teacher_offload else "teacher_batch_size"
    if any(teacher.model is None or teacher.moves for teacher in teachers):
        (teacher,) = teachers
        raise ValueError(
            f"{fields} needs a teacher with frozen weights of its own, and this one "
            f"{'is the student with other adapters' if teacher.model is None else 'moves with the student'}. Leave it "
            "unset: such a teacher scores the student's micro-batches."
        )
    if args.teacher_offload and teachers and is_sharded(trainer):
        raise ValueError(
            "teacher_offload='cpu' moves a whole teacher, and this engine shards it. Use the engine's own offloading "
            "(offload_param_device: cpu, fsdp_offload_params: true), or ZeRO-2 or DDP."
        )


def check_quantized(trainer) -> None:
    """Refuse what would give a quantized teacher other numbers without an error, or stop deep inside torch."""
    remedy = "serve it with `opd-trl serve-teacher`, or load it unquantized."
    if trainer.is_deepspeed_enabled and is_sharded(trainer):
        raise ValueError(
            "a quantized teacher under ZeRO-3, which would cut its packed weights apart. "
            f"Use ZeRO-2, DDP or FSDP2, {remedy}"
        )
    if trainer.is_fsdp_enabled and torch.__version__ < FSDP_SHARDS_INTEGERS:
        raise ValueError(
            f"a quantized teacher under FSDP2 with torch {torch.__version__}, which cannot shard packed weights. "
            f"Update to torch {FSDP_SHARDS_INTEGERS} or later, use ZeRO-2 or DDP, {remedy}"
        )
    if trainer.args.teacher_offload:
        raise ValueError(
            "teacher_offload with a quantized teacher, whose scales would stay behind. Leave teacher_offload out."
        )


def is_sharded(trainer) -> bool:
    """Does the engine keep a share of each weight on each rank (ZeRO-3, FSDP2)?"""
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    return trainer.is_fsdp_enabled


def prepare_teacher(trainer, teacher: Teacher) -> nn.Module:
    """Wrap a teacher as TRL wraps GRPO's reference model; an offloaded one stays a plain module on the CPU."""
    model = teacher.model
    if trainer.args.teacher_offload:
        teacher.rest_on_cpu(trainer.accelerator.device)
        return model
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return shard_by_layers(trainer.accelerator, model)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)


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


def prepare_teachers(trainer) -> tuple[int, list[int]]:
    """Wrap the teachers' own models.

    Returns:
        the rows of all heads that are compared, and the context windows of teachers that have one.
    """
    student = trainer.model.config.get_text_config()
    num_rows, windows = student.vocab_size, []
    for teacher in trainer.teachers.values():
        if isinstance(teacher, ServedTeacher):
            rows, window = teacher.num_rows, teacher.window
        elif teacher.model is None:
            rows, window = num_rows, getattr(student, "max_position_embeddings", None)
        else:
            config = teacher.model.config.get_text_config()
            rows = shared_rows(student.vocab_size, config.vocab_size, trainer._tokenizer.get_vocab())
            window = getattr(config, "max_position_embeddings", None)
            teacher.model = prepare_teacher(trainer, teacher)
        num_rows = min(num_rows, rows)
        windows += [] if window is None else [window]
    return num_rows, windows
