"""From a parsed recipe and the flags of `accelerate launch` to the workload and the engine that are sized."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

from accelerate.commands.config.config_args import load_config_from_file
from trl import ModelConfig

from ..scripts.common import model_init_kwargs
from ..trainers.config import OPDConfig
from .advice import FOUR_BITS
from .model_size import adapter_parameters, build, measure, read_config
from .sizing import GIB
from .workload import Engine, ModelSize, Workload, engines


DEFAULT_GPUS = 8


def read_workload(training: OPDConfig, model_args: ModelConfig, own: Namespace, *, on_cpu: bool) -> Workload:
    """Put the fields of a recipe together with the sizes of its models.

    Args:
        training: an OPDConfig or OPSDConfig.
        model_args: TRL's ModelConfig.
        own: the flags of `opd-trl plan`.
        on_cpu: does the recipe train on a CPU?

    Raises:
        ValueError: a config.json that cannot be read or sized, or a length that is missing.
    """
    if training.max_completion_length is None:
        raise ValueError("max_completion_length is not set. Set it to the longest completion in tokens.")
    remote = training.trust_remote_code
    config = read_config("student", model_args.model_name_or_path, own.student_config, trust_remote_code=remote)
    student = build(config, trust_remote_code=remote)
    return Workload(
        student=measure(student, dtype=model_init_kwargs(training, model_args)["dtype"]),
        teacher=read_teacher(training, own.teacher_config),
        teacher_kind=getattr(training, "teacher_model_kind", "model"),
        use_peft=model_args.use_peft,
        adapter_parameters=adapter_parameters(student, model_args),
        linear_bits=FOUR_BITS if model_args.load_in_4bit else 8.0 if model_args.load_in_8bit else None,
        mixed_precision=training.bf16 or training.fp16,
        eight_bit_optimizer="8bit" in training.optim,
        reference_model=training.beta != 0.0,
        teacher_offload=training.teacher_offload is not None,
        teacher_batch_size=training.teacher_batch_size,
        batch_size=training.per_device_train_batch_size,
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


def read_teacher(training: OPDConfig, folder: str | None) -> ModelSize | None:
    """Size a separate teacher; None where the student is its own."""
    if hasattr(training, "teacher_model_kind"):
        if folder is not None:
            raise ValueError(
                f"--teacher-config {folder} is given, but without teacher_model_name_or_path the student is its own "
                "teacher. Name a teacher in the recipe or as a flag, or leave --teacher-config out."
            )
        return None
    remote = training.trust_remote_code
    config = read_config("teacher", training.teacher_model_name_or_path, folder, trust_remote_code=remote)
    dtype = (training.teacher_model_init_kwargs or {}).get("dtype", "auto")
    return measure(build(config, trust_remote_code=remote), dtype=dtype)


def read_engine(launch: Namespace, *, gpus: int | None, on_cpu: bool) -> tuple[Engine, list[Engine]]:
    """The engine that `accelerate launch` would start, and all engines on as many GPUs.

    Args:
        launch: the flags of `accelerate launch`. Without a configuration: DDP.
        gpus: by default those of the configuration or of `num_processes`, or 8.
        on_cpu: one process without a GPU.

    Raises:
        ValueError: an engine that is not sized.
    """
    if on_cpu:
        engine = Engine("cpu", "CPU", 1)
        return engine, [engine]
    config = load_config_from_file(launch.config_file) if launch.config_file else Namespace(num_processes=None)
    kind = config.distributed_type.value if launch.config_file else "MULTI_GPU"
    gpus = gpus or launch.num_processes or (config.num_processes if kind != "NO" else None) or DEFAULT_GPUS
    known = {engine.name: engine for engine in engines(gpus)}
    if launch.use_deepspeed or kind == "DEEPSPEED":
        engine = read_deepspeed(known, getattr(config, "deepspeed_config", {}) | given(launch))
    elif launch.use_fsdp or kind == "FSDP":
        engine = read_fsdp(known, {"fsdp_version": launch.fsdp_version} | getattr(config, "fsdp_config", {}))
    elif kind in ("NO", "MULTI_GPU"):
        engine = known["multi_gpu" if kind == "MULTI_GPU" and gpus > 1 else "single_gpu"]
    else:
        raise ValueError(f"distributed_type {kind} is not sized. Take --accelerate_config {', '.join(known)}.")
    return engine, [engine if other.name == engine.name else other for other in known.values()]


def given(launch: Namespace) -> dict[str, Any]:
    """DeepSpeed's settings among the flags."""
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
    """The engine of FSDP's settings."""
    if int(settings["fsdp_version"]) != 2:
        raise ValueError(f"fsdp_version {settings['fsdp_version']} is not sized. Take --accelerate_config fsdp2.")
    offload = bool(settings.get("fsdp_offload_params"))
    return replace(known["fsdp2"], offload_optimizer=offload, offload_weights=offload)
