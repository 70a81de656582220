"""GRPOTrainer refuses to be built without a reward function; distillation needs none."""

from typing import Any


def no_reward(completions: list, **kwargs: Any) -> list[float]:
    """Stand-in where no reward function is given."""
    return [0.0] * len(completions)


def drop_stand_in(trainer) -> bool:
    """Are there rewards? The stand-in stays where there are none, but nothing is logged under its name."""
    if no_reward not in trainer.reward_funcs:
        return True
    if len(trainer.reward_funcs) == 1:
        trainer.reward_func_names = []
        return False
    # An environment brought a reward of its own.
    del trainer.reward_funcs[0], trainer.reward_func_names[0], trainer.reward_processing_classes[0]
    trainer.reward_weights = trainer.reward_weights[1:]
    return True
