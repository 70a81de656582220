"""Rewards beside distillation: none needed, a gate on what is distilled, a weight that changes over the run."""

import re
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import IterableDataset
from torch import Tensor
from transformers import AutoConfig, TrainingArguments

from ..addresses import is_url
from ..data.prompts import RowError
from ..evaluation import graded_text, math_accuracy
from ..evaluation.notation import plain_answer
from ..privileged import Context, is_empty
from ..teachers.several.routing import named_datasets
from .config.opd_config import OPDConfig


logger = get_logger(__name__)

#: From here on a KL anchor without rewards looks like a leftover of another trainer's configuration.
LARGE_BETA = 0.1


def no_reward(completions: list, **kwargs: Any) -> list[float]:
    """Stand-in where no reward function is given: GRPOTrainer refuses to be built without one."""
    return [0.0] * len(completions)


def check_reward_funcs(reward_funcs: Any, args: OPDConfig, *, environment: bool) -> None:
    """Refuse what is not a reward, such as a teacher in second place, and weights of rewards that are not there.

    Args:
        reward_funcs: as the trainer takes them.
        args: of the trainer.
        environment: is there one, which may bring a reward of its own?

    Raises:
        TypeError: a language model, an address or a configuration in the place of a reward.
        ValueError: `reward_weights` without rewards.
    """
    given = reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    for reward in given:
        if isinstance(reward, TrainingArguments):
            raise TypeError(f"reward_funcs holds {type(reward).__name__}. Pass the configuration by name: args=...")
        writer = writes_text(reward, args)
        if writer is not None:
            raise TypeError(
                f"reward_funcs holds {writer}, which writes text and gives no reward. A teacher is passed by name: "
                "teacher_model=..."
            )
    if args.reward_weights is not None and not environment and all(reward is None for reward in given):
        raise ValueError(
            f"reward_weights={args.reward_weights!r} without rewards: there is nothing to weigh. Give reward_funcs, "
            "or remove reward_weights."
        )


def writes_text(reward: Any, args: OPDConfig) -> str | None:
    """What a language model in the place of a reward is, in words; None for what can be a reward."""
    if is_url(reward):
        return f"the address {reward}"
    if isinstance(reward, str):
        names = AutoConfig.from_pretrained(reward, trust_remote_code=args.trust_remote_code).architectures or []
        return f"{reward!r} ({names[0]})" if names and names[0].endswith("ForCausalLM") else None
    head = reward.get_output_embeddings() if hasattr(reward, "get_output_embeddings") else None
    return None if head is None else f"a {type(reward).__name__}"


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


def check_rewards(trainer) -> None:
    """Refuse a gate that nothing opens, and right answers that cannot be read; warn where rewards cannot teach.

    Raises:
        ValueError: `distillation_gate`, `sibling_context` or `advantage_shaping` without rewards; an answer without
            meaning, with its row.
    """
    args, has_rewards = trainer.args, trainer.has_rewards
    if math_accuracy in trainer.reward_funcs:
        for name, dataset in named_datasets(trainer.train_dataset, trainer.eval_dataset).items():
            check_golds(dataset, name)
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
    if args.advantage_shaping is not None and not has_rewards:
        raise ValueError(
            f"advantage_shaping={args.advantage_shaping!r} shapes the advantage that rewards give. Give reward_funcs, "
            "e.g. math_accuracy (opd_trl.evaluation), or leave it out."
        )
    if args.beta >= LARGE_BETA and not has_rewards:
        logger.warning(
            f"beta={args.beta} without rewards: beta is GRPO's KL anchor to the initial model, so a third model is "
            "loaded and the student is held back. DistillationTrainer's and GKD's beta is divergence and "
            "divergence_beta here: remove beta, or set it below 0.1 if you want the anchor."
        )
    if has_rewards and args.num_generations == 1 and args.distillation_gate is None:
        logger.warning(
            "reward functions with num_generations=1: a group of one has no advantage, so the rewards are only "
            "logged. Set num_generations >= 2 to learn from them."
        )


#: GRPO's losses that are a mean over the rows of a micro-batch, and then over micro-batches.
MEAN_OF_ROWS = ("grpo", "dr_grpo", "sapo", "luspo")


def share_of_rows(trainer, batch: dict[str, Any]) -> float:
    """What a mean over the rows of a micro-batch counts, where `micro_batch_tokens` makes them unequal."""
    if trainer.args.micro_batch_tokens is None or trainer.loss_type not in MEAN_OF_ROWS or not trainer.model.training:
        return 1.0
    return len(batch["completion_ids"]) / trainer.args.per_device_train_batch_size


def rows_stay_for(trainer) -> dict[str, str]:
    """What makes the loss depend on which rows of a step share a micro-batch -> the setting without it."""
    args, found = trainer.args, {}
    if trainer.policy_is_active and trainer.loss_type == "bnpo":
        found["loss_type: bnpo"] = "loss_type: dapo"
    if trainer.policy_is_active and args.top_entropy_quantile < 1.0:
        found[f"top_entropy_quantile: {args.top_entropy_quantile}"] = "top_entropy_quantile: 1.0"
    if trainer.policy_is_active and (args.entropy_coef != 0.0 or args.use_adaptive_entropy):
        found["an entropy bonus"] = "entropy_coef: 0.0 and use_adaptive_entropy: false"
    if trainer.aux_loss_enabled:
        found["the router loss of experts"] = "router_aux_loss_coef: 0.0"
    return found


def check_golds(dataset, name: str) -> None:
    """Raise RowError where a data set has no right answers for `math_accuracy`, or one that cannot be read."""
    columns = getattr(dataset, "column_names", None)
    if columns is not None and "answer" not in columns:
        raise RowError(
            f"the {name} set has no column 'answer', it has {', '.join(map(repr, columns))}",
            "math_accuracy compares with it: rename the column that holds the right answers.",
        )
    for row, answer in enumerate([] if isinstance(dataset, IterableDataset) else dataset["answer"]):
        if not re.search(r"\w|∞", plain_answer(answer)):
            raise RowError(
                f"math_accuracy cannot read the answer {answer!r}",
                "Write it as a number or as LaTeX, or filter the row out.",
                where=f"row {row} of the {name} set",
            )


def distilled_rows(trainer, count: int, contexts: list[Context | None] | None) -> Tensor:
    """`(B, 1)` int64: 1 for the completions of this process that are distilled; their share is logged.

    Args:
        trainer: its gate, and its rewards of the batch, of all processes.
        count: B, completions of this process.
        contexts: of `sibling_contexts`, where the teacher reads those; a row without one is not distilled.
    """
    accelerator = trainer.accelerator
    kept = torch.ones(count, dtype=torch.bool, device=accelerator.device)
    if trainer.args.distillation_gate is not None:
        is_open = gate(trainer.args, trainer.last_rewards, trainer.reward_weights)
        trainer.running_metrics["distillation/gate_open"].append(is_open.float().mean().item())
        own = accelerator.process_index * count  # rewards are gathered from all processes
        kept &= is_open[own : own + count]
    if contexts is not None:
        taught = torch.tensor([context is not None for context in contexts], device=accelerator.device)
        trainer.running_metrics["distillation/has_context"].append(accelerator.gather(taught.float()).mean().item())
        kept &= taught
    return kept[:, None].long()


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


def sibling_contexts(trainer, rows: list[dict[str, Any]], completions: list[Any]) -> list[Context | None]:
    """The privileged context of each row of this process: a success of a sibling, or else the row's own column.

    Args:
        trainer: its rewards of the batch, of all processes.
        rows: of this process, with the completions of one prompt side by side.
        completions: texts, or lists of messages, of these rows.

    Returns:
        None where there is neither: that row's loss must be masked.
    """
    texts = gather_object([answer_of(completion) for completion in completions])
    size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    found = first_success(
        texts, is_correct(trainer.args, trainer.last_rewards, trainer.reward_weights), group_size=size
    )
    own = trainer.accelerator.process_index * len(rows)
    column = trainer.args.privileged_context_column
    return [
        context if context is not None else None if is_empty(row.get(column)) else row[column]
        for context, row in zip(found[own : own + len(rows)], rows, strict=True)
    ]


def first_success(texts: list[str], correct: Tensor, *, group_size: int) -> list[str | None]:
    """For each completion the first other one of its group that is correct.

    >>> import torch
    >>> first_success(["a", "b", "c", "d"], torch.tensor([False, True, False, True]), group_size=2)
    ['b', None, 'd', None]
    """
    successes = [text if right else None for text, right in zip(texts, correct.tolist(), strict=True)]
    found = []
    for row in range(len(texts)):
        start = row - row % group_size
        others = successes[start:row] + successes[row + 1 : start + group_size]
        found.append(next((text for text in others if text is not None), None))
    return found


def answer_of(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion, without what it thought before.

    >>> answer_of([{"role": "assistant", "content": "<think>2 + 2</think>4"}])
    '4'
    """
    return graded_text(completion).rsplit("</think>", 1)[-1].strip()
