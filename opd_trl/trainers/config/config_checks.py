"""What OPDConfig refuses where it is built: unknown choices and combinations that cannot work."""

import dataclasses
import logging
import os
import re
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any, get_args

import torch

from ...addresses import Address, is_url, shown
from ...given import check_finite, default_of
from ...losses.advantages import ADVANTAGE_SHAPES
from ...losses.divergences import DIVERGENCES
from ...losses.mixture import MEANS
from ...losses.objective import BASELINES
from ...losses.support import SUPPORTS, TAILS, TOP_K_SUPPORTS
from ...losses.token_weights import TOKEN_WEIGHTS, Outside
from ...spelling import did_you_mean
from ...teachers.several.mixed import check_mix
from ...teachers.vocabulary import TEACHER_VOCABULARIES
from .agent_checks import check_depth
from .loss_checks import check_loss
from .rollout_checks import check_rollouts


logger = logging.getLogger(__name__)

#: Fields that name a separate teacher.
SEPARATE_TEACHERS = ("teacher_model_name_or_path", "teacher_server_url", "teachers")
CHOICES = {
    "divergence": tuple(DIVERGENCES),
    "loss_support": SUPPORTS,
    "loss_tail": TAILS,
    "teacher_vocabulary": TEACHER_VOCABULARIES,
    "teacher_mean": MEANS,
    "teacher_offload": (None, "cpu"),
    "distillation_coef_schedule": ("constant", "linear"),
    "distillation_gate": (None, "correct", "incorrect"),
    "loss_baseline": (None, *BASELINES),
    "loss_position_weight": (None, *TOKEN_WEIGHTS),
    "loss_trust_outside": get_args(Outside),
    "advantage_shaping": (None, *ADVANTAGE_SHAPES),
}
NOT_NEGATIVE = (
    *("num_loss_tokens_to_skip", "distillation_coef", "distillation_coef_end"),
    *("policy_coef", "teacher_server_retries", "loss_position_gamma", "sdar_coef"),
)
ABOVE_ZERO = (
    *("loss_temperature", "loss_pointwise_clip", "loss_importance_cap", "loss_extrapolation"),
    *("rollout_length_start", "rollout_length_end"),
)
AT_LEAST_ONE = (
    *("max_teacher_prompt_length", "loss_memory_mib", "micro_batch_tokens"),
    *("teacher_batch_size", "teacher_server_concurrency"),
    *("teacher_prefix_tokens", "teacher_prefix_steps"),
    "rollout_length_steps",
    *("tool_depth_start", "tool_depth_steps"),
)


#: Processes of the job that a recipe is checked for, where it is not this process that trains.
PROCESSES: ContextVar[int | None] = ContextVar("PROCESSES", default=None)


class SingleGeneration(int):
    """The number 1, for GRPO's check that a group has at least 2 completions, which only advantages need."""

    def __lt__(self, other: int) -> bool:
        return False


def choose_device(config, given: frozenset[str]) -> None:
    """Set `use_cpu`, and `bf16` off, where there is no accelerator and neither is set by hand; one line says so.

    Args:
        config: an `OPDConfig` that TRL has not seen yet.
        given: its fields that were set by hand.
    """
    if "use_cpu" in given or torch.accelerator.is_available():
        return
    config.use_cpu = True
    if config.bf16 is None:
        config.bf16 = False
    say_once(f"No GPU is seen: use_cpu: true, bf16: {str(config.bf16).lower()}. What you set by hand wins.")


@cache
def say_once(text: str) -> None:
    """Warn on one process of the job, and not again."""
    if os.environ.get("RANK", "0") == "0":
        logger.warning(text)


def check_config(config) -> None:
    """Check an `OPDConfig`.

    Raises:
        ValueError: with the remedy.
    """
    check_finite(config)  # again: TRL has read the mappings that were given as JSON texts
    check_choices(config)
    check_teachers(config)
    check_depth(config)
    check_loss(config)
    check_rollouts(config)
    check_siblings(config)
    check_shuffled(config)
    warn_of_unread(config)
    if config.monitor_eval_prompts < 0 or config.monitor_eval_steps < 1:
        given = f"{config.monitor_eval_prompts} and {config.monitor_eval_steps}"
        raise ValueError(f"monitor_eval_prompts must be >= 0 and monitor_eval_steps >= 1, got {given}.")
    if config.monitor_eval_prompts and not config.monitor:
        raise ValueError("monitor_eval_prompts with monitor: false: nobody would look at them. Set monitor: true.")
    if config.monitor_stop and not config.monitor:
        raise ValueError("monitor_stop: true with monitor: false: nothing would stop the run. Set monitor: true.")
    if config.privileged_context is not None and config.privileged_context_file is not None:
        raise ValueError(
            "privileged_context and privileged_context_file are both set. Give the shared text in one of them."
        )


#: Field -> does anything read it under a configuration, and what would.
READ_WHERE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "divergence": (lambda config: config.loss_support != "sampled", "a loss_support other than sampled"),
    "teacher_vocabulary": (lambda config: not config.teaches_itself, "a separate teacher"),
    "teacher_mean": (lambda config: config.teacher_mix is not None, "teacher_mix"),
    "divergence_beta": (lambda config: config.divergence in ("jsd", "mixed"), "divergence: jsd or mixed"),
    "loss_top_k": (
        lambda config: config.loss_support in TOP_K_SUPPORTS or config.loss_baseline == "top_k",
        "a loss_support of TopK, or loss_baseline: top_k",
    ),
    "loss_tail": (lambda config: config.loss_support in TOP_K_SUPPORTS, "a loss_support of TopK"),
    "loss_position_gamma": (lambda config: config.loss_position_weight == "iw_opd", "loss_position_weight: iw_opd"),
    **dict.fromkeys(
        ("loss_trust_ratio", "loss_trust_outside"),
        (lambda config: config.loss_position_weight == "trust_region", "loss_position_weight: trust_region"),
    ),
    "advantage_shaping": (lambda config: config.policy_coef != 0, "a policy_coef above 0"),
    **dict.fromkeys(
        ("rlsd_share", "rlsd_clip"),
        (lambda config: config.advantage_shaping == "rlsd", "advantage_shaping: rlsd"),
    ),
    "sdar_coef": (lambda config: config.advantage_shaping == "sdar", "advantage_shaping: sdar"),
    "distillation_coef_end": (
        lambda config: config.distillation_coef_schedule == "linear",
        "distillation_coef_schedule: linear",
    ),
    "distillation_gate_threshold": (
        lambda config: config.distillation_gate is not None or config.sibling_context,
        "distillation_gate or sibling_context",
    ),
    "rollout_length_start": (
        lambda config: config.first_rollout_limit != config.max_completion_length,
        "a max_completion_length above it",
    ),
    "teacher_prefix_steps": (lambda config: config.teacher_prefix_tokens is not None, "teacher_prefix_tokens"),
    **dict.fromkeys(
        ("rollout_length_end", "rollout_length_steps"),
        (lambda config: config.rollout_length_start is not None, "rollout_length_start"),
    ),
    **dict.fromkeys(
        ("teacher_update_rate", "teacher_sync_steps"),
        (lambda config: config.teacher_model_kind == "ema", "teacher_model_kind: ema"),
    ),
}


def warn_of_unread(config) -> None:
    """Warn of fields that were set by hand to another value than their default, and that nothing reads."""
    usual = {field.name: default_of(field) for field in dataclasses.fields(config) if field.name in READ_WHERE}
    for name in sorted(config._given & usual.keys()):
        is_read, where = READ_WHERE[name]
        if getattr(config, name) != usual[name] and not is_read(config):
            logger.warning(f"{name}={getattr(config, name)!r} has no effect here. It needs {where}.")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise ValueError for a value that is not one of the choices, with the nearest one."""
    if value not in choices:
        said = f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}."
        raise ValueError(f"{said} {did_you_mean(value, choices).capitalize()}".strip())


def check_choices(config) -> None:
    for name, choices in CHOICES.items():
        check_choice(name, getattr(config, name), choices)
    for name in NOT_NEGATIVE:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must be >= 0, got {getattr(config, name)}.")
    if not 0.0 <= config.divergence_beta <= 1.0:
        raise ValueError(
            f"divergence_beta must lie in [0, 1], got {config.divergence_beta}. 0 is the forward KL, 1 the reverse."
        )
    for name in ABOVE_ZERO:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be > 0, got {value}. Leave it unset for the default.")
    for name in AT_LEAST_ONE:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}. Leave it unset for the default.")


def check_teachers(config) -> None:
    given = [name for name in SEPARATE_TEACHERS[:-1] if getattr(config, name) is not None]
    if config.teachers is not None and given:
        raise ValueError(f"teachers together with {' and '.join(given)}. Put every teacher into the mapping.")
    if config.teachers is not None and not (isinstance(config.teachers, dict) and config.teachers):
        raise ValueError(
            f"teachers must map at least one name to a model or URL, got {type(config.teachers).__name__}. In YAML: "
            "`teachers: {math: Qwen/Qwen3-8B, code: 'http://127.0.0.1:8001'}`."
        )
    check_server_models(config)
    check_mix(config.teacher_mix, [""] if given else config.teachers)
    check_addresses(config)
    if config.teacher_server_url is not None and config.teacher_offload is not None:
        raise ValueError("teacher_offload with teacher_server_url: a served teacher has no weights here. Drop one.")
    if config.teacher_server_timeout <= 0:
        raise ValueError(f"teacher_server_timeout must be > 0 seconds, got {config.teacher_server_timeout}.")


def check_server_models(config) -> None:
    """Raise ValueError for a model beside a server that is not among the teachers."""
    if config.teacher_server_models is None:
        return
    served = [name for name, teacher in (config.teachers or {}).items() if is_url(teacher)]
    given = config.teacher_server_models
    if not isinstance(given, dict) or not given or not given.keys() <= set(served):
        raise ValueError(
            f"teacher_server_models must map names of `teachers` with an address to models, got {given!r}; those with "
            f"an address are {', '.join(map(repr, served)) or 'none'}. Of a single server: teacher_model_name_or_path."
        )


def check_addresses(config) -> None:
    """Raise ValueError for a malformed address; a text like `host:8001` among the teachers is one too."""
    if config.teacher_server_url is not None and not is_url(config.teacher_server_url):
        raise ValueError(
            f"teacher_server_url must start with http:// or https://, got {shown(str(config.teacher_server_url))!r}. "
            "A model on this machine is teacher_model_name_or_path."
        )
    named = {f"teachers: {name}": teacher for name, teacher in (config.teachers or {}).items()}
    named |= {name: getattr(config, name) for name in SEPARATE_TEACHERS[:-1]}
    for name, teacher in named.items():
        if is_url(teacher) or re.match(r"[^/]+:\d+(/|$)", str(teacher)):
            try:
                Address.parse(teacher)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def check_siblings(config) -> None:
    """Raise ValueError where no completion has a sibling, or where all rows share a context already."""
    if not config.sibling_context:
        return
    if config.num_generations < 2:
        raise ValueError(
            f"sibling_context needs several completions of a prompt, and num_generations is {config.num_generations}. "
            "Set num_generations: 8."
        )
    if config.has_shared_context:
        raise ValueError(
            "sibling_context together with a privileged context that all rows share. Put the shared text into "
            "privileged_template, or leave one of them out."
        )


def check_shuffled(config) -> None:
    """Raise ValueError where there is no column of contexts to draw another row's from."""
    if config.shuffle_privileged_context and (config.has_shared_context or config.sibling_context):
        other = "sibling_context" if config.sibling_context else "a privileged context that all rows share"
        raise ValueError(
            f"shuffle_privileged_context together with {other}: it gives each row the context of another row, from "
            "the column privileged_context_column. Leave one of them out."
        )
