"""What a run is: models, arguments and what differs from their defaults, versions, machine."""

import dataclasses
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .. import __version__
from ..reports.run_log import as_json, is_secret, without_secrets
from ..teachers.served import ServedTeacher
from .config import OPDConfig
from .methods import default_of, find_method


PACKAGES = ("trl", "transformers", "torch", "peft", "accelerate", "datasets")


def describe_session(trainer, *, first_step: int, max_steps: int) -> dict[str, Any]:
    """The entry of a session in `run.json`, without its start and its end."""
    args = trainer.args
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    return {
        "first_step": first_step,
        "max_steps": max_steps,
        "argv": without_secrets(sys.argv),
        "trainer": type(trainer).__name__,
        "method": args.method,
        "student": as_json(path_of(trainer, trainer.model)),
        "teachers": {name: as_json(teacher_name(trainer, teacher)) for name, teacher in trainer.teachers.items()},
        "config": as_json(fields),
        "differs": differences(args),
        "versions": {
            "opd_trl": __version__,
            **{name: installed(name) for name in PACKAGES},
            "python": platform.python_version(),
        },
        "processes": trainer.accelerator.num_processes,
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else str(args.device),
    }


def differences(args: OPDConfig) -> dict[str, dict[str, Any]]:
    """Field -> value, default and its source, of the fields given by hand that are not as published or by default."""
    published = {} if args.method is None else find_method(args.method).fields
    found = {}
    for field in dataclasses.fields(args):
        if field.name not in args._given or is_secret(field.name):
            continue
        value = getattr(args, field.name)
        is_published = field.name in published
        default = published[field.name] if is_published else default_of(field)
        if value != default:
            found[field.name] = {
                "value": as_json(value),
                "default": None if default is dataclasses.MISSING else as_json(default),
                "source": f"method {args.method}" if is_published else type(args).__name__,
            }
    return found


def teacher_name(trainer, teacher) -> str:
    """Address or path of a teacher; how a teacher that is the student itself was made."""
    kind = getattr(trainer.args, "teacher_model_kind", None)
    if kind is not None:
        return f"the student ({kind})"
    return teacher.server.url if isinstance(teacher, ServedTeacher) else path_of(trainer, teacher.model)


def path_of(trainer, model) -> str:
    """Path or hub id that a model was loaded from, or its class."""
    plain = trainer.accelerator.unwrap_model(model)
    return getattr(plain.config, "_name_or_path", "") or type(plain).__name__


def installed(package: str) -> str | None:
    """Version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
