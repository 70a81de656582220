"""Folders of LoRA adapters, as `use_peft: true` leaves them: the base they name, and both loaded as one model."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from trl.trainer.utils import create_model_from_path

from ..foreign import parse_json


ADAPTER_FILE = "adapter_config.json"


def is_adapter(model: Any) -> bool:
    """Is it a folder that holds an adapter, and not a whole model?"""
    if not isinstance(model, str):
        return False
    folder = Path(model).expanduser()
    return (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").is_file()


def base_of(model: str) -> str:
    """Where the configuration and the weights of a model lie: in the base of an adapter, or in the model itself.

    Raises:
        ValueError: the adapter names no base, or a folder that does not exist.
    """
    if not is_adapter(model):
        return model
    file = Path(model).expanduser() / ADAPTER_FILE
    base = parse_json(file.read_bytes()).get("base_model_name_or_path")
    if not base or ((base.startswith((".", "/", "~")) or base.count("/") != 1) and not Path(base).is_dir()):
        found = f"its base model {base!r}, which does not exist (looked in {Path.cwd()})" if base else "no base model"
        raise ValueError(
            f"{model!r} is a LoRA adapter and names {found}. Write the folder or the hub id of its base model into "
            f"{file}, as base_model_name_or_path."
        )
    return base


def tokenizer_of_path(model: str, *, base: str | None = None) -> str:
    """Where the tokenizer of a model lies: beside an adapter where one was saved with it, else beside its base.

    `base` is in place of the one that the adapter names.
    """
    beside = (Path(model).expanduser() / "tokenizer_config.json").is_file()
    return model if beside else base or base_of(model)


def load_causal_lm(model: str, *, is_trainable: bool = False, **kwargs: Any) -> nn.Module:
    """A model from a path or hub id; that of an adapter with its base, not merged.

    Args:
        model: folder or hub id.
        is_trainable: shall the adapter be trained further?
        kwargs: of TRL's `create_model_from_path`, for the base where there is one.

    Raises:
        ValueError: see `base_of`; an adapter that does not fit its base.
    """
    if not is_adapter(model):
        return create_model_from_path(model, **kwargs)
    base = base_of(model)
    loaded = create_model_from_path(base, **{name: value for name, value in kwargs.items() if name != "revision"})
    return with_adapter(loaded, model, is_trainable=is_trainable)


def with_adapter(base: nn.Module, adapter: str, *, is_trainable: bool = False) -> nn.Module:
    """A loaded base with the adapter of a folder, not merged; raises ValueError where they do not fit."""
    try:
        return PeftModel.from_pretrained(base, adapter, is_trainable=is_trainable)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(f"the adapter {adapter} does not fit {base.config._name_or_path}: {reason}.") from None


def with_absolute_path(model: Any) -> Any:
    """A student whose folder is named so that an adapter trained on it finds it from anywhere.

    PEFT writes the name under which a base was loaded into the adapter.
    """
    if isinstance(model, str):
        return str(Path(model).resolve()) if Path(model).is_dir() else model
    name = getattr(model.config, "_name_or_path", "")
    if name and Path(name).is_dir():
        model.config._name_or_path = model.name_or_path = str(Path(name).resolve())
        for config in getattr(model, "peft_config", {}).values():
            config.base_model_name_or_path = model.name_or_path
    return model
