"""From the flags of `accelerate launch` to the engine that is sized."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

from accelerate.commands.config.config_args import load_config_from_file

from .workload import Engine, engines


DEFAULT_GPUS = 8


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
