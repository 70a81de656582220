"""Load whole models: a separate teacher, a second copy of the student, one to read from."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl.trainer.utils import create_model_from_path

from ..data.files import DataError
from ..trainers.config import OPDConfig
from .sampling import Engine


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


@contextmanager
def plain_models(args: OPDConfig) -> Iterator[None]:
    """Models that are loaded within are whole, even in a job in which ZeRO-3 shards every model that is loaded."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        config = getattr(args, "hf_deepspeed_config", None)  # there is one in a DeepSpeed job alone
        if config is not None:
            set_hf_deepspeed_config(config)


def one_device(args: OPDConfig) -> dict[str, Any]:
    """In a distributed job every rank holds the whole model; `device_map="auto"` would take other ranks' GPUs."""
    return {"device_map": None} if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED") else {}


def copy_student(model, kwargs: dict[str, Any]) -> nn.Module | None:
    """A copy of the student at step 0, before TRL changes it. LoRA needs none, and a path is loaded again."""
    lora = kwargs.get("peft_config") is not None or hasattr(model, "peft_config")
    return None if lora or isinstance(model, str) else copy.deepcopy(model)


def load_model(name: str, *, revision: str | None = None, dtype: str = "auto", device: str | None = None) -> Any:
    """A causal language model and its tokenizer, ready to generate.

    Args:
        name: hub id or path.
        revision: branch, tag or commit.
        dtype: as in `from_pretrained`.
        device: where to; default: the accelerator where there is one.

    Raises:
        DataError: it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the model {name!r} cannot be loaded: {' '.join(str(error).split())}. Give a folder with a saved model, "
            "or a hub id such as Qwen/Qwen3-8B that this machine can reach."
        ) from error
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model.

    Raises:
        ValueError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(_unloadable(model, error)) from None


def load_engine(
    name: str, model: str, tokenizer: Any, *, adapter: str | None, dtype: str, batch_size: int | None
) -> Engine:
    """Load the model.

    Args:
        name: "transformers" or "vllm".
        model: folder or hub id.
        tokenizer: its own.
        adapter: folder of a LoRA adapter, or None.
        dtype: "auto" (as saved), "float32", "bfloat16", "float16".
        batch_size: answers at once; None for the engine's default.

    Raises:
        ValueError: it cannot be loaded.
        ImportError: vLLM is asked for and not installed.
    """
    sizes = {} if batch_size is None else {"batch_size": batch_size}
    if name == "vllm":
        from .vllm_engine import VLLMEngine

        return VLLMEngine(model, adapter=adapter, dtype=dtype, **sizes)
    from .transformers_engine import TransformersEngine

    return TransformersEngine(load_model(model, adapter=adapter, dtype=dtype), tokenizer, **sizes)


def load_model(model: str, *, adapter: str | None, dtype: str) -> Any:
    """A causal language model on the first GPU, or on the CPU; with its adapter, not merged."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ValueError(_unloadable(model, error)) from None
    if adapter is not None:
        from peft import PeftModel

        try:
            loaded = PeftModel.from_pretrained(loaded, adapter)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"--adapter {adapter} does not fit {model}: {_short(error)}.") from None
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu")


def _unloadable(model: str, error: Exception) -> str:
    place = "" if Path(model).is_dir() else " There is no such folder, so it is taken for a hub id."
    return f"--model {model} cannot be loaded: {_short(error)}.{place}"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
