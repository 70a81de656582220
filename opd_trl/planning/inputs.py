"""From a parsed recipe to the workload that is sized, and from the flags of `accelerate launch` to the engine."""

import argparse
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.commands.config.config_args import load_config_from_file
from trl import ModelConfig

from ..addresses import is_url
from ..models.lora_folders import is_adapter
from ..scripts.common import model_init_kwargs
from ..scripts.launching import launch_arguments
from ..scripts.recipe_command import Flags, check_misplaced, make_parser, peek, training_command
from ..teachers.several.routing import is_routed, named_teachers
from ..trainers.config.opd_config import OPDConfig
from .component import GIB
from .model_size import adapter_parameters, build, measure, read_config
from .totals import size
from .workload import Engine, Teacher, Workload, engines, teacher_flag


DEFAULT_GPUS = 8


def read_workload(training: OPDConfig, model_args: ModelConfig, own: Namespace, *, on_cpu: bool) -> Workload:
    """Put the fields of a recipe together with the sizes of its models; `own` are the flags of `opd-trl plan`.

    Raises ValueError for a config.json that cannot be read or sized, or a length that is missing.
    """
    if training.max_completion_length is None:
        raise ValueError("max_completion_length is not set. Set it to the longest completion in tokens.")
    budget, row = training.micro_batch_tokens, own.prompt_length + training.max_completion_length
    if budget is not None and budget < row:
        raise ValueError(
            f"micro_batch_tokens={budget} is below a row of {row} tokens: --prompt-length {own.prompt_length} and "
            f"max_completion_length {training.max_completion_length}. Set it to {row} or more, or lower one of them."
        )
    remote = training.trust_remote_code
    name, flag = model_args.model_name_or_path, "--student-config DIR"
    config = read_config("student", name, own.student_config, flag=flag, trust_remote_code=remote)
    student = build(config, trust_remote_code=remote)
    quantization = {name: getattr(model_args, name) for name in ("load_in_4bit", "load_in_8bit")}
    return Workload(
        student=measure(student, dtype=model_init_kwargs(training, model_args)["dtype"], quantization=quantization),
        teachers=read_teachers(training, own.teacher_config or []),
        teacher_kind=getattr(training, "teacher_model_kind", "model"),
        loss_support=training.loss_support,
        loss_top_k=training.loss_top_k,
        use_peft=model_args.use_peft or is_adapter(name),
        adapter_parameters=adapter_parameters(student, model_args),
        mixed_precision=training.bf16 or training.fp16,
        eight_bit_optimizer="8bit" in training.optim,
        reference_model=training.beta != 0.0,
        extrapolates=training.loss_extrapolation != 1.0,
        teacher_offload=training.teacher_offload is not None,
        teacher_batch_size=training.teacher_batch_size,
        batch_size=training.per_device_train_batch_size,
        micro_batch_tokens=training.micro_batch_tokens,
        mixes=training.teacher_mix is not None,
        generation_batch_size=training.per_device_train_batch_size * training.steps_per_generation,
        prompt_length=own.prompt_length,
        teacher_prompt_length=training.max_teacher_prompt_length or own.prompt_length,
        completion_length=training.max_completion_length,
        gradient_checkpointing=training.gradient_checkpointing,
        attention=model_args.attn_implementation or "sdpa",
        loss_memory_mib=training.loss_memory_mib,
        generation=training.vllm_mode if training.use_vllm else "transformers",
        vllm_share=training.vllm_gpu_memory_utilization,
        vllm_sleeps=training.vllm_enable_sleep_mode,
        gather_for_generation=training.ds3_gather_for_generation,
        gpu_memory=own.gpu_memory * GIB,
        device="cpu" if on_cpu else "cuda",
    )


def read_teachers(training: OPDConfig, given: list[str]) -> tuple[Teacher, ...]:
    """Size the separate teachers; none where the student is its own.

    `given` is what `--teacher-config` gives: a folder, or `name=folder` for each of several teachers. Raises
    ValueError for a folder of a teacher that there is not, or where a teacher in this job has no config.json.
    """
    if training.teaches_itself:
        if given:
            raise ValueError(
                f"--teacher-config {' '.join(given)} is given, but without a separate teacher in the recipe the "
                "student is its own teacher. Name one in the recipe or as a flag, or leave --teacher-config out."
            )
        return ()
    named = named_teachers(None, **training.teacher_fields)
    folders = teacher_folders(given, list(named))
    return tuple(read_teacher(training, name, teacher, folders.get(name)) for name, teacher in named.items())


def teacher_folders(given: list[str], names: list[str]) -> dict[str, str]:
    """Name of a teacher -> folder of its config.json.

    >>> teacher_folders(["qwen3-8b"], [""])
    {'': 'qwen3-8b'}
    >>> teacher_folders(["math=qwen3-8b"], ["math", "code"])
    {'math': 'qwen3-8b'}
    """
    if not is_routed(names) and len(given) == 1:
        return {"": given[0]}
    folders = {}
    for text in given:
        name, _, folder = text.partition("=")
        if name not in names:
            expected = " ".join(map(teacher_flag, names))
            raise ValueError(f"--teacher-config {text} is for none of the recipe's teachers. Expected {expected}.")
        folders[name] = folder
    return folders


def read_teacher(training: OPDConfig, name: str, teacher: str, folder: str | None) -> Teacher:
    """Size one teacher. A server is not asked: without a local copy or a folder nothing is known of its teacher."""
    remote, served = training.trust_remote_code, is_url(teacher)
    reads_text, local_copy = training.teacher_vocabulary == "text", training.model_of_server(name) if served else None
    path, flag = local_copy if served else teacher, f"--teacher-config {teacher_flag(name)}"
    if path is None and folder is None:
        return Teacher(name, None, served, reads_text=reads_text)
    config = read_config("teacher", path, folder, flag=flag, trust_remote_code=remote)
    kwargs = {} if served else training.teacher_model_init_kwargs or {}
    quantization = kwargs.get("quantization_config") or {}
    size = measure(
        build(config, trust_remote_code=remote), dtype=kwargs.get("dtype", "auto"), quantization=quantization
    )
    return Teacher(name, size, served, None if reads_text else local_copy, reads_text)


def read_engine(launch: Namespace, *, gpus: int | None, on_cpu: bool) -> tuple[Engine, list[Engine]]:
    """The engine that `accelerate launch` would start, DDP without a configuration, and all engines on as many GPUs.

    `gpus` are by default those of the configuration or of `num_processes`, or 8. Raises ValueError for an engine that
    is not sized.
    """
    if on_cpu:
        engine = Engine("cpu", "CPU", 1)
        return engine, [engine]
    config = load_config_from_file(launch.config_file) if launch.config_file else Namespace(num_processes=None)
    kind = config.distributed_type.value if launch.config_file else "MULTI_GPU"
    gpus = gpus or launch.num_processes or (config.num_processes if kind != "NO" else None) or DEFAULT_GPUS
    known = {engine.name: engine for engine in engines(gpus)}
    if launch.use_deepspeed or kind == "DEEPSPEED":
        engine = read_deepspeed(known, getattr(config, "deepspeed_config", {}) | deepspeed_flags(launch))
    elif launch.use_fsdp or kind == "FSDP":
        engine = read_fsdp(known, {"fsdp_version": launch.fsdp_version} | getattr(config, "fsdp_config", {}))
    elif kind in ("NO", "MULTI_GPU"):
        engine = known["multi_gpu" if kind == "MULTI_GPU" and gpus > 1 else "single_gpu"]
    else:
        raise ValueError(f"distributed_type {kind} is not sized. Take --accelerate_config {', '.join(known)}.")
    return engine, [engine if other.name == engine.name else other for other in known.values()]


def deepspeed_flags(launch: Namespace) -> dict[str, Any]:
    """DeepSpeed's settings among the flags of `accelerate launch`, those that are not given left out."""
    names = ("zero_stage", "offload_optimizer_device", "offload_param_device", "deepspeed_config_file")
    return {name: getattr(launch, name) for name in names if getattr(launch, name) is not None}


def read_deepspeed(known: dict[str, Engine], settings: dict[str, Any]) -> Engine:
    """The engine of DeepSpeed's settings; stage 2 by default, as in accelerate."""
    if "deepspeed_config_file" in settings:
        raise ValueError(
            f"deepspeed_config_file={settings['deepspeed_config_file']!r} is not read here. Give --accelerate_config "
            "zero1, zero2 or zero3 to size that stage."
        )
    stage = settings.get("zero_stage", 2)
    if f"zero{stage}" not in known:
        raise ValueError(f"zero_stage must be 1, 2 or 3, got {stage}. Take --accelerate_config multi_gpu for stage 0.")
    optimizer, weights = (settings.get(f"offload_{part}_device", "none") != "none" for part in ("optimizer", "param"))
    return replace(known[f"zero{stage}"], offload_optimizer=optimizer, offload_weights=weights)


def read_fsdp(known: dict[str, Engine], settings: dict[str, Any]) -> Engine:
    """The FSDP2 engine with its offloading; raises ValueError for version 1, which is not sized."""
    if int(settings["fsdp_version"]) != 2:
        raise ValueError(f"fsdp_version {settings['fsdp_version']} is not sized. Take --accelerate_config fsdp2.")
    offload = bool(settings.get("fsdp_offload_params"))
    return replace(known["fsdp2"], offload_optimizer=offload, offload_weights=offload)


def plan(argv: list[str], own_flags: Flags) -> tuple[dict[str, Any], Path | None]:
    """Parse a command line and size its run; return the figures and the file to write them to.

    `own_flags` are those of `opd-trl plan`, with their argparse options. Raises ValueError for what cannot be sized.
    """
    recipe = peek(argv, "generation_batch_size")
    parser = make_parser(training_command(recipe), own_flags, prog="opd-trl plan")
    check_misplaced(recipe, own_flags, prog="opd-trl plan")
    # --use_cpu: without a GPU transformers refuses bf16, and a plan is often made where there is none.
    _, training, model_args, _, own, launch_flags = parser.parse_args_and_config(
        [*argv, "--use_cpu"], return_remaining_strings=True
    )
    check_own(own)
    on_cpu = str(recipe.get("use_cpu", False)).lower() in ("true", "yes", "1")
    engine, others = read_engine(launch_arguments(launch_flags, "script"), gpus=own.gpus, on_cpu=on_cpu)
    served = [is_url(teacher) for teacher in (training.teachers or {}).values()]
    if training.teacher_offload is not None and engine.stage == 3 and not (served and all(served)):
        raise ValueError(
            f"teacher_offload={training.teacher_offload!r} moves a whole teacher, and {engine.title} shards it. Leave "
            "it out, or take ZeRO-2 or DDP."
        )
    if "generation_batch_size" in recipe:  # of all GPUs
        of_one_micro_batch = training.per_device_train_batch_size * engine.gpus
        training.steps_per_generation = max(1, training.generation_batch_size // of_one_micro_batch)
    return size(read_workload(training, model_args, own, on_cpu=on_cpu), engine, others), own.json


def check_own(own: argparse.Namespace) -> None:
    """Refuse sizes below 1 among the flags of `opd-trl plan`."""
    for name in ("gpus", "gpu_memory", "prompt_length"):
        value = getattr(own, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {value:g}.")
