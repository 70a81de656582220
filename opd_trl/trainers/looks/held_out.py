"""What a student does on prompts that it is not trained on: exact divergences and scores, prompt by prompt."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor

from ...diagnostics.metrics import repeated_trigrams, repetition
from ...models.sequences import unpadded
from ...models.sharding import is_sharded
from .pairs import figures_of
from .pairs import measure as compare
from .rollouts import Rollout, roll_out, score, take_rows


#: From answers and the rows of the data set that they answer to 1 (right) or 0 (wrong) for each.
Judge = Callable[[list[str], list[dict[str, Any]]], list[float]]
#: Figures of each completion: nats a token (the first four; `divergence` is that of the run, over the whole
#: vocabulary), a probability, tokens, shares.
FIGURES = ("divergence", "reverse_kl", "forward_kl", "entropy", "outside", "length", "repetition", "score")


def hold_out(trainer, count: int, *, seed: int) -> list[dict[str, Any]]:
    """Take rows out of a trainer's training set and return them; copies of their prompts are taken out too.

    Args:
        trainer: an OPDTrainer that has not begun.
        count: of rows, rounded up to whole batches of all processes; a quarter of the data set at most.
        seed: draws them.

    Raises:
        ValueError: a stream, which has no number of rows, or too few rows.
    """
    dataset = trainer.train_dataset
    if not hasattr(dataset, "__len__"):
        raise ValueError("rows of the training set are held out, and this one is a stream. Set streaming: false.")
    batch = whole_batch(trainer)
    count = -(-count // batch) * batch
    if count > room(dataset):
        raise ValueError(
            f"{count} held-out prompts are more than a quarter of the {len(dataset)} rows of the training set. Take "
            f"{max(1, room(dataset))} or fewer (--trial-prompts, monitor_eval_prompts), or more rows."
        )
    rows = take_rows(dataset, count, seed=seed)
    taken, prompts = {str(row["prompt"]) for row in rows}, dataset["prompt"]
    trainer.train_dataset = dataset.select([i for i in range(len(dataset)) if str(prompts[i]) not in taken])
    return rows


def whole_batch(trainer) -> int:
    """How many rows all processes answer at once."""
    return trainer.accelerator.num_processes * trainer.args.per_device_train_batch_size


def room(dataset) -> int:
    """How many rows of a training set may be held out: a quarter of them."""
    return len(dataset) // 4 if hasattr(dataset, "__len__") else 0


class HeldOut:
    """What the student of a run does on rows that it is not trained on, as often as one looks.

    Each time it answers the rows anew, with the same draws, and both models are compared over the whole vocabulary at
    every token. Nothing of the run changes: modes, random states and metrics are what they were. All ranks must look,
    each at its share of the rows.

    Args:
        trainer: an OPDTrainer, in training or not.
        rows: from `hold_out`, equally many for each process.
        judge: scores answers; None: no score.
        seed: of the sampling.

    Raises:
        ValueError: an engine that shards the weights.
    """

    def __init__(self, trainer, rows: Sequence[dict[str, Any]], *, judge: Judge | None, seed: int):
        if is_sharded(trainer):
            raise ValueError(
                "held-out rows are looked at where each process has the whole model: under DDP, ZeRO-1 and ZeRO-2. "
                "For a trial give --accelerate_config zero2, for a run monitor_eval_prompts: 0."
            )
        self.trainer, self.judge, self.seed = trainer, judge, seed
        self.rank, self.ranks = trainer.accelerator.process_index, trainer.accelerator.num_processes
        self.rows = rows[self.rank :: self.ranks]

    def measure(self) -> dict[str, list[float]]:
        """Look.

        Returns:
            figure of `FIGURES` -> one value for each answer, those of all processes; without a judge there is no
            score.

        Raises:
            ValueError: a teacher that gives no whole distribution.
        """
        with undisturbed(self.trainer, self.seed + self.rank):
            rollouts = roll_out(self.trainer, self.rows)
            found = [of_rollout(self.trainer, rollout, self.judge) for rollout in rollouts]
            values = {name: [v for part in found for v in part[name]] for name in found[0]}
            values |= self.further(rollouts)
        return {name: gather_object(own) for name, own in values.items()}

    def further(self, rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        """Further figures of each answer; none here."""
        return {}


@torch.no_grad()
def of_rollout(trainer, rollout: Rollout, judge: Judge | None) -> dict[str, list[float]]:
    """The figures of a batch of answers, for each of them; a mean over its tokens, NaN where it has none."""
    batch, kept, objective = rollout.batch, rollout.kept, trainer.objective
    number = torch.arange(len(kept), device=kept.device).unsqueeze(-1).expand_as(kept)
    rows, values = [], []
    for scored in score(trainer, rollout):
        reverse, forward, entropy, _, _, outside, *_ = figures_of(scored, objective)
        own = {"reverse_kl": reverse, "forward_kl": forward}.get(objective.divergence)
        if own is None:
            whole = {"support": "full", "divergence": objective.divergence}
            own = compare(scored.student, scored.teacher, objective, **whole)["per_token_divergence"].cpu()
        rows.append(number[scored.kept].cpu())
        values.append(torch.stack([own, reverse, forward, entropy, outside]))
    means = by_row(torch.cat(values, dim=1), torch.cat(rows), len(kept))
    mask = batch["completion_mask"]
    repeated = repetition(repeated_trigrams(batch["completion_ids"], mask), mask)
    found = dict(zip(FIGURES[:5], means.tolist(), strict=True))
    found |= {"length": mask.sum(-1).tolist(), "repetition": repeated.tolist()}
    if judge is not None:
        texts = trainer.tokenizer.batch_decode(unpadded(batch, "completion"), skip_special_tokens=True)
        found["score"] = judge(texts, rollout.rows)
    return found


def by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Means `(F, count)` of values `(F, N)` by their row `(N,)`.

    >>> by_row(torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([0, 0, 1]), 2).tolist()
    [[2.0, 5.0]]
    """
    sums = values.new_zeros(len(values), count).index_add_(1, rows, values)
    return sums / torch.bincount(rows, minlength=count)


@contextmanager
def undisturbed(trainer, seed: int) -> Iterator[None]:
    """Sample with a seed of one's own beside a run, and give it its random states back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        with trainer.aside():
            set_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)
