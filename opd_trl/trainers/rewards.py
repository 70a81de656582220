"""Rewards beside distillation: none needed, a gate on what is distilled, a weight that changes over the run."""

from typing import Any

import torch
from torch import Tensor

from .config import OPDConfig


def no_reward(completions: list, **kwargs: Any) -> list[float]:
    """Stand-in where no reward function is given: GRPOTrainer refuses to be built without one."""
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


def check_rewards(args: OPDConfig, *, has_rewards: bool) -> str | None:
    """Refuse a gate that nothing opens; return a warning where rewards cannot teach.

    Raises:
        ValueError: `distillation_gate` or `sibling_context` without rewards.
    """
    if args.distillation_gate is not None and not has_rewards:
        raise ValueError(
            f"distillation_gate={args.distillation_gate!r} needs reward_funcs that say which completions are correct, "
            "e.g. math_accuracy (opd_trl.evaluation). Give one, or leave the gate unset."
        )
    if args.sibling_context and not has_rewards:
        raise ValueError(
            "sibling_context needs reward_funcs that say which completions are correct, e.g. math_accuracy "
            "(opd_trl.evaluation). Give one, or leave it out and give the context in a column."
        )
    if has_rewards and args.num_generations == 1 and args.distillation_gate is None:
        return (
            "reward functions with num_generations=1: a group of one has no advantage, so the rewards are only "
            "logged. Set num_generations >= 2 to learn from them."
        )
    return None


def gate(args: OPDConfig, rewards_per_func: Tensor, reward_weights: Tensor) -> Tensor:
    """`(B,)` bool: which completions are distilled.

    Args:
        args: `distillation_gate` opens for correct or for incorrect completions; correct is a weighted sum of rewards
            of at least `distillation_gate_threshold`.
        rewards_per_func: `(B, number of reward functions)`; NaN where a function left a completion out. One that all
            left out is not distilled.
        reward_weights: one per function.
    """
    correct = is_correct(args, rewards_per_func, reward_weights)
    scored = ~torch.isnan(rewards_per_func).all(-1)
    return scored & (correct if args.distillation_gate == "correct" else ~correct)


def is_correct(args: OPDConfig, rewards_per_func: Tensor, reward_weights: Tensor) -> Tensor:
    """`(B,)` bool: is the weighted sum of rewards at least `distillation_gate_threshold`?"""
    reward = (rewards_per_func * reward_weights.to(rewards_per_func.device)).nansum(-1)
    return reward >= args.distillation_gate_threshold


def distillation_coef(args: OPDConfig, state) -> float:
    """Weight of the distillation loss at a step: constant, or on a line from the first step to the end of the run."""
    if args.distillation_coef_schedule == "constant":
        return args.distillation_coef
    progress = min(state.global_step / max(state.max_steps, 1), 1.0)
    return args.distillation_coef + (args.distillation_coef_end - args.distillation_coef) * progress
