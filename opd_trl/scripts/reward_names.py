"""What a recipe names: reward functions (ours, TRL's, or an import path), tools and environments (import paths)."""

import importlib
from collections.abc import Callable

from ..evaluation import math_accuracy


PLAIN = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")
SOFT = "get_soft_overlong_punishment"
# The lengths of TRL's own GRPO script.
SOFT_LENGTHS = {"max_completion_len": 1280, "soft_punish_cache": 256}


def imported(path: str, field: str) -> Callable:
    """What stands at an import path, `package.module.function`; ValueError names the field of the recipe."""
    module, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{field}: {path!r} cannot be imported as package.module.name ({error}).") from error
    if not callable(found):
        raise ValueError(f"{field}: {path!r} is a {type(found).__name__}, expected a function or a class.")
    return found


def reward_func(name: str, *, of_trl: bool = False) -> Callable:
    """Return a reward function: `math_accuracy`, one of TRL's, or an import path; raises ValueError for others.

    `of_trl` is for the scripts of TRL, which know `math_accuracy` by its import path alone.
    """
    if name == "math_accuracy" and not of_trl:
        return math_accuracy
    if name in PLAIN:
        return getattr(importlib.import_module("trl.rewards"), name)
    if name == SOFT:
        return getattr(importlib.import_module("trl.rewards"), name)(**SOFT_LENGTHS)
    module, _, function = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        ours = "opd_trl.evaluation.math_accuracy" if of_trl else "math_accuracy"
        raise ValueError(
            f"reward_funcs: {name!r} is none of {', '.join((*PLAIN, SOFT))} and cannot be imported as "
            f"package.module.function ({error}). The reward for mathematics is {ours}."
        ) from error
