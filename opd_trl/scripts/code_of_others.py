"""Which code of others a run would execute, in words, before it does: import paths, code of models, environments."""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..foreign import parse_json
from ..privileged import TEMPLATES
from .recipe_files import load_mapping
from .reward_names import PLAIN, SOFT


OURS = "opd_trl"
#: Variables that change figures, logs and devices. Any other may choose a program, a library or a server.
PLAIN_VARIABLES = {
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_DEVICE_MAX_CONNECTIONS", "OMP_NUM_THREADS"),
    *("OMP_WAIT_POLICY", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    *("TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"),
    *("NCCL_DEBUG", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NCCL_SOCKET_IFNAME", "PYTORCH_ALLOC_CONF"),
    *("PYTORCH_CUDA_ALLOC_CONF", "WANDB_PROJECT", "WANDB_MODE", "WANDB_NAME", "WANDB_RUN_GROUP"),
    *("VLLM_LOGGING_LEVEL", "ACCELERATE_LOG_LEVEL"),
}
OFF = (False, None, "", "false", "False")
#: Keys, at any depth, under which a library loads code or starts programs -> does this value ask for it?
LOADS_CODE = {
    **dict.fromkeys(("trust_remote_code", "allow_all_kernels", "use_kernels"), lambda value: value not in OFF),
    "weights_only": lambda value: value in OFF,  # pickles
    "attn_implementation": lambda value: "/" in str(value),  # a kernel of the hub
    "custom_generate": lambda value: value not in OFF,
    "lower_precision_safe_modules": bool,  # of DeepSpeed: import paths
    # Of accelerate: on other machines.
    **dict.fromkeys(("deepspeed_hostfile", "mpirun_hostfile", "tpu_use_cluster"), lambda value: value not in OFF),
    "compute_environment": lambda value: value not in (None, "LOCAL_MACHINE"),
}
#: Keys whose value may be a JSON or YAML file, and is looked into.
FILES = ("deepspeed", "fsdp_config", "accelerator_config", "deepspeed_config_file", "accelerate_config")
MODELS = ("model_name_or_path", "teacher_model_name_or_path", "reference_model_name_or_path", "teachers")
MODELS += ("reward_model_name_or_path",)


def code_in(values: Mapping[str, Any]) -> list[str]:
    """Each piece of code that these keys of a recipe would run, in words; packages that they belong to are not ours.

    >>> code_in({"reward_funcs": ["math_accuracy", "mine.length"], "env": {"LD_PRELOAD": "x", "NCCL_DEBUG": "INFO"}})
    ['reward_funcs: mine.length (not found)', 'env: LD_PRELOAD']
    >>> code_in({"trust_remote_code": True, "model_name_or_path": "who/what"})
    ['trust_remote_code: who/what']
    """
    found = [
        f"{key}: {path}{origin(path)}"
        for key in ("reward_funcs", "tools", "environment_factory")
        for path in texts(values.get(key))
        if is_foreign(path)
    ]
    builder = values.get("privileged_builder")
    if isinstance(builder, str) and builder not in TEMPLATES and is_foreign(builder):
        found.append(f"privileged_builder: {builder}{origin(builder)}")
    environment = values.get("env")
    if isinstance(environment, Mapping):
        found += [f"env: {name}" for name in environment if name not in PLAIN_VARIABLES]
    models = [name for key in MODELS for name in texts(values.get(key))]
    for place, value in nested({key: value for key, value in values.items() if key != "env"}):
        is_remote = place.rpartition(".")[2] == "trust_remote_code"
        found.append(f"{place}: {', '.join(models) if is_remote and models else value}")
    return list(dict.fromkeys(found))


def is_foreign(path: str) -> bool:
    """Is an import path none of ours and no name of TRL?"""
    return path not in (*PLAIN, SOFT, "math_accuracy") and path.partition(".")[0] != OURS


def origin(path: str) -> str:
    """The file of an import path, in brackets. Nothing of it is run: of a module in a package, the package's file."""
    name = path.replace(":", ".").partition(".")[0]
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None and (Path(f"{name}.py").is_file() or Path(name).is_dir()):
        return f" ({Path.cwd() / name})"
    return f" ({spec.origin or name})" if spec else " (not found)"


def texts(value: Any) -> list[str]:
    """The texts of a value: itself, or those of a list or mapping."""
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
    return [text for text in values if isinstance(text, str)]


def nested(values: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Place and value of each key that loads code; JSON texts and files are looked into."""
    if isinstance(values, list | tuple):
        values = dict(enumerate(values))
    if not isinstance(values, Mapping):
        return
    for key, value in values.items():
        here = f"{place}.{key}" if place else str(key)
        if key in LOADS_CODE and LOADS_CODE[key](value):
            yield here, value
        yield from nested(as_json(key, value), here)


def as_json(key: Any, value: Any) -> Any:
    """The value of a JSON text, or of a file where the key may name one; anything else as it is."""
    if not isinstance(value, str):
        return value
    if key in FILES and Path(value).is_file():
        try:
            return parse_json(Path(value).read_bytes()) if value.endswith(".json") else load_mapping(Path(value))
        except ValueError as error:
            raise ValueError(f"{key}: {value} cannot be read: {error}") from None
    if not value.lstrip().startswith("{"):
        return value
    try:
        return parse_json(value)
    except ValueError:
        return value  # a text, such as a template


def code_of_stages(stages: Mapping[str, tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The same for the stages of a pipeline: name -> its command and all that it is told; a script is code.

    >>> code_of_stages({"sft": ("python train.py", {}), "eval": ("opd-trl eval", {"model": "m"})})
    ['stage sft: python train.py']
    """
    found = []
    for name, (run, values) in stages.items():
        own = [] if run.startswith(("opd-trl ", "trl ")) else [run]
        found += [f"stage {name}: {piece}" for piece in own + code_in(values)]
    return found


#: What has been named already, for the processes that this one starts.
NAMED = "OPD_TRL_CODE_NAMED"


def name_code(pieces: list[str], *, prog: str, refuse: bool) -> None:
    """Say in one line on stderr which code of others will run, once in a job.

    `refuse` (`--no-code`) makes it a ValueError, and keeps what this process starts from importing out of the working
    directory.
    """
    if refuse:
        os.environ["PYTHONSAFEPATH"] = "1"
    if not pieces:
        return
    found = json.dumps("; ".join(pieces), ensure_ascii=False)[1:-1]
    if refuse:
        raise ValueError(f"--no-code refuses code of others: {found}. Read that code, then leave --no-code out.")
    if os.environ.get(NAMED) != found and os.environ.get("RANK", "0") == "0":
        print(f"{prog}: runs code of others: {found}", file=sys.stderr)
    os.environ[NAMED] = found
