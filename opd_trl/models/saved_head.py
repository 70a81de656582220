"""The LM head and the final norm of a model on disk or on the hub: their tensors alone, without the body."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ..foreign import parse_json
from ..losses.head import Head, LogitTransform
from .lora_folders import is_adapter
from .own_forward import TRANSFORMS, name_of, run_to_head


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class SavedHead(NamedTuple):
    """What stands behind the layers of a model: its LM head, and the norm before it in float32, None without one."""

    head: Head
    norm: nn.Module | None


def read_saved_head(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False, dtype: str | torch.dtype = "auto"
) -> SavedHead:
    """Read the LM head of a model from its safetensors; what it does to logits is asked of its class.

    Of the hub, only the files that hold the head and the final norm are downloaded.

    Args:
        path: folder or hub id of a whole model.
        revision: branch, tag or commit of the hub.
        trust_remote_code: run the code that comes with it.
        dtype: of the head; "auto": as saved.

    Raises:
        ValueError: an adapter, no safetensors, no such tensors, or a family whose logits are not those of a head on
            the states behind the final norm.
    """
    try:
        if is_adapter(path):
            raise ValueError("it is a LoRA adapter. Name the merged model that is served")
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        model = on_meta(config, trust_remote_code=trust_remote_code)
        read = reader_of(model, path, revision)
        weight, bias = head_names(model)
        norm = final_norm(model, read)
        head = Head(read(weight), None if bias is None else read(bias), *transform_of(model)[1:])
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(f"the LM head of {path!r} cannot be read: {reason}.") from None
    if dtype != "auto":
        head = head.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    return SavedHead(head, norm)


def reader_of(model: PreTrainedModel, path: str, revision: str | None) -> Callable[[str], Tensor]:
    """Name of a tensor in the model -> that tensor, from the model's files."""
    files = weight_files(path, revision)
    keys, tied = saved_keys(model, list(files)), getattr(model, "all_tied_weights_keys", {})

    def read(name: str) -> Tensor:
        key = keys.get(name, keys.get(tied.get(name, "")))
        if key is None:
            raise ValueError(f"its safetensors have no {name}, which a {name_of(model)} has")
        with safe_open(cached_file(path, files[key], revision=revision), framework="pt") as file:
            tensor = file.get_tensor(key)
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is stored as {tensor.dtype}, expected one of {DTYPES}")
        return tensor

    return read


def final_norm(model: PreTrainedModel, read: Callable[[str], Tensor]) -> nn.Module | None:
    """The norm behind the last layer: the last one of the decoder that is not part of a numbered layer."""
    decoder = model.get_decoder()
    place = next((name for name, module in model.named_modules() if module is decoder), "")
    norms = {name: module for name, module in decoder.named_modules() if is_outside_layers(name) and is_norm(module)}
    if not norms:
        return None
    name, norm = norms.popitem()
    norm = copy.deepcopy(norm).to_empty(device="cpu").float()
    for own, parameter in norm.named_parameters():
        parameter.data.copy_(read(".".join(filter(None, (place, name, own)))))
    return norm.requires_grad_(False)


def is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def is_outside_layers(name: str) -> bool:
    """Has the path of a module no number in it?

    >>> is_outside_layers("model.norm"), is_outside_layers("model.layers.1.norm")
    (True, False)
    """
    return not any(part.isdigit() for part in name.split("."))


def on_meta(config: Any, *, trust_remote_code: bool) -> PreTrainedModel:
    """The model of a config, as `from_pretrained` would make it: shapes alone."""
    architecture = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"):
        if architecture is None:
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        return architecture(config)


def weight_files(path: str, revision: str | None) -> dict[str, str]:
    """Key of each saved tensor -> the file that holds it."""
    options = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    if (index := cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **options)) is not None:
        with open(index, "rb") as file:
            return parse_json(file.read()).get("weight_map", {})
    if (single := cached_file(path, SAFE_WEIGHTS_NAME, **options)) is None:
        raise ValueError(f"there is no {SAFE_WEIGHTS_NAME}. Save it as safetensors, which are read in parts")
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), SAFE_WEIGHTS_NAME)


def head_names(model: PreTrainedModel) -> tuple[str, str | None]:
    """The names of the head's weight and bias in the model."""
    head = model.get_output_embeddings()
    place = next((name for name, module in model.named_modules() if module is head), None)
    if head is None or place is None:
        raise ValueError(f"{name_of(model)} has no LM head that could be read")
    return f"{place}.weight", None if getattr(head, "bias", None) is None else f"{place}.bias"


def saved_keys(model: PreTrainedModel, keys: list[str]) -> dict[str, str]:
    """Name of each tensor in the model -> its key in the files, by transformers' own renaming."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    places = model.base_model_prefix, model.state_dict()
    found = {}
    for key in keys:
        name, converter = rename_source_key(key, renamings, converters, *places)
        if name not in places[1] and key in places[1]:
            name, converter = rename_source_key(key, [], [], *places)
        if converter is None:  # what is put together of several tensors is not a head
            found[name] = key
    return found


class Output(tuple):
    """What a body returns: the hidden states first and by name, None for whatever else is asked of it."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


class Body(nn.Module):
    """Takes the place of a part of a model: returns the same hidden states whatever it reads."""

    def __init__(self, part: nn.Module, hidden_states: Tensor):
        super().__init__()
        self._parts, self._hidden_states = (part,), hidden_states  # in a tuple, so that it is not part of this module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            return super().__getattr__(name)
        value = getattr(self._parts[0], name)
        return Body(value, self._hidden_states) if isinstance(value, nn.Module) else value

    def forward(self, *args: Any, **kwargs: Any) -> Output:
        return Output([self._hidden_states])


@torch.no_grad()
def transform_of(model: PreTrainedModel) -> LogitTransform:
    """What a model on the meta device does to its logits; its body is taken out of it.

    Raises:
        ValueError: it does more to logits than to scale and to cap them, or something to the states before its head.
    """
    head = model.get_output_embeddings()
    rows, width = head.weight.shape
    states = (torch.arange(width) % 7).float().view(1, 1, width)  # exact in 16 bits too
    for name, part in list(model.named_children()):
        if all(module is not head for module in part.modules()):
            setattr(model, name, Body(part, states))
    ids = torch.zeros(1, 1, dtype=torch.int64)
    try:
        read, _ = run_to_head(model, width=rows, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except (AttributeError, TypeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"what {name_of(model)} does around its LM head cannot be told ({error}).") from error
    if not torch.equal(read.float(), states):
        raise ValueError(f"{name_of(model)} changes the states between its final norm and its LM head.")
    return TRANSFORMS[model]
