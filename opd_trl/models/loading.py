"""Load models: one that is not trained beside one that is, a tokenizer, an engine that generates."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, ProcessorMixin, TrainingArguments
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from .lora_folders import base_of, is_adapter, load_causal_lm, with_adapter
from .sampling import Engine
from .transformers_engine import TransformersEngine


ProcessingClass = Tokenizer | ProcessorMixin


def is_slow_in_bfloat16(device: torch.device | str) -> bool:
    """Does a device compute in bfloat16 slower than in float32? CPUs without instructions for it do, 2 to 50 times."""
    capability = torch.backends.cpu.get_cpu_capability()
    lacks = capability == "AVX512" and not torch.cpu._is_avx512_bf16_supported()
    return torch.device(device).type == "cpu" and (lacks or capability in ("DEFAULT", "AVX2"))


@contextmanager
def plain_models(args: TrainingArguments) -> Iterator[None]:
    """Models that are loaded within are whole, even in a job in which ZeRO-3 shards every model that is loaded."""
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        config = getattr(args, "hf_deepspeed_config", None)  # there is one in a DeepSpeed job alone
        if config is not None:
            set_hf_deepspeed_config(config)


def load_whole(path: str, distributed_type: str, **kwargs: Any) -> nn.Module:
    """Load a model that is not trained, whole on every rank; `kwargs` of `from_pretrained` win.

    In a job of several processes (`distributed_type`, as accelerate names it) `device_map="auto"` would take other
    ranks' GPUs.
    """
    one_device = {"device_map": None} if distributed_type in ("MULTI_GPU", "DEEPSPEED") else {}
    return load_causal_lm(path, **one_device | kwargs)


def copy_student(model, kwargs: dict[str, Any]) -> nn.Module | None:
    """A copy of the student at step 0, before TRL changes it. LoRA needs none, and a path is loaded again."""
    lora = kwargs.get("peft_config") is not None or hasattr(model, "peft_config")
    return None if lora or isinstance(model, str) else copy.deepcopy(model)


def load_tokenizer(model: str, *, revision: str | None = None) -> Any:
    """The tokenizer of a model, at a branch, tag or commit of the hub; raises ValueError where it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(_unloadable(model, error)) from None


def load_engine(
    name: str, model: str, tokenizer: Any, *, adapter: str | None, dtype: str, batch_size: int | None
) -> Engine:
    """A model, with a LoRA adapter where one is given, behind the engine "transformers" or "vllm".

    `batch_size` is how many answers are generated at once, None for the default of the engine; `dtype` is that of
    `load_model`. Raises ValueError where the model cannot be loaded, ImportError where vLLM is not installed.
    """
    sizes = {} if batch_size is None else {"batch_size": batch_size}
    if name == "vllm":
        from .vllm_engine import VLLMEngine

        return VLLMEngine(model, adapter=adapter, dtype=dtype, **sizes)
    return TransformersEngine(load_model(model, adapter=adapter, dtype=dtype), tokenizer, **sizes)


def load_model(
    model: str,
    *,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> Any:
    """A causal language model, with its adapter, not merged.

    Args:
        model: folder or hub id; that of an adapter stands for its base and itself.
        adapter: folder of a LoRA adapter, or None.
        revision: branch, tag or commit of the hub.
        dtype: "auto" (as saved), "float32", "bfloat16", "float16".
        device: where to; the first GPU by default, or the CPU where there is none.

    Raises:
        ValueError: model or adapter cannot be loaded.
    """
    if adapter is None and is_adapter(model):
        model, adapter = base_of(model), model
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ValueError(_unloadable(model, error)) from None
    if adapter is not None:
        loaded = with_adapter(loaded, adapter)
    return loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _unloadable(model: str, error: Exception) -> str:
    place = "" if Path(model).is_dir() else " There is no such folder, so it is taken for a hub id."
    return f"--model {model} cannot be loaded: {_short(error)}.{place}"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
