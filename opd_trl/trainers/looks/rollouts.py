"""Rollouts of a trainer's student, and what both models say at every token of them. Nothing is trained."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...losses.mixture import Mixture
from ...losses.next_token import NextToken
from ...losses.objective import Tokens
from ...models.forward import completion_hidden_states, read_head
from ...models.multimodal import multimodal_inputs
from ...models.sequences import join
from ...models.sharding import whole_heads
from ..passes import kept_tokens


@dataclass(frozen=True)
class Rollout:
    """A batch of rows that the student has answered.

    Attributes:
        rows: of the data set, one per completion, with the prompts that the student was given.
        batch: what the trainer makes of them: ids and masks of prompts, teacher prompts and completions.
    """

    rows: list[dict[str, Any]]
    batch: dict[str, Any]

    @property
    def kept(self) -> Tensor:
        """`(B, T)` bool: the tokens that the loss is taken on."""
        return self.batch["loss_mask"].bool()


@dataclass(frozen=True)
class Scored:
    """Both models at the N kept tokens of the rows that one teacher answers for.

    Attributes:
        teacher_name: empty for a single teacher.
        student, teacher: their next-token distributions.
        tokens: the sampled ones.
        kept: `(B, T)` bool, N of them True.
    """

    teacher_name: str
    student: NextToken
    teacher: NextToken | Mixture
    tokens: Tokens
    kept: Tensor


def take_rows(dataset, count: int, *, seed: int) -> list[dict[str, Any]]:
    """`count` rows of a data set, drawn without replacement; the first ones of a stream."""
    if not hasattr(dataset, "__len__"):
        return [row for row, _ in zip(dataset, range(count), strict=False)]
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    return [dataset[i] for i in order[:count]]


def roll_out(trainer, rows: list[dict[str, Any]], *, on_batch: Callable[[], None] = lambda: None) -> list[Rollout]:
    """Let the student answer rows as in training, in batches of `per_device_train_batch_size`.

    Args:
        trainer: an OPDTrainer that does not train.
        rows: of its data set.
        on_batch: called after each batch, of which there are `num_batches`.
    """
    size, copies = batch_size(trainer), trainer.num_generations_eval
    trainer.model.eval()
    rollouts = []
    for start in range(0, len(rows), size):
        part = [row for row in rows[start : start + size] for _ in range(copies)]
        with torch.no_grad():
            batch = trainer.answer(part)
            rollouts.append(Rollout(trainer.given_rows(part), batch))
        on_batch()
    return rollouts


def batch_size(trainer) -> int:
    """How many rows make a batch; each is answered `num_generations_eval` times, as rewards and siblings need it."""
    return max(1, trainer.args.per_device_train_batch_size // trainer.num_generations_eval)


def num_batches(trainer, rows: list[dict[str, Any]]) -> int:
    """In how many batches `roll_out` answers rows."""
    return -(-len(rows) // batch_size(trainer))


def score(trainer, rollout: Rollout) -> Iterator[Scored]:
    """Both models' distributions on a rollout, for each teacher that has a row in it.

    The student's hidden states keep their graph where some of its parameters require one (`only_block`).

    Raises:
        ValueError: a served teacher that sends no hidden states, of which the whole distribution is not known.
    """
    batch = rollout.batch
    with torch.no_grad():
        scores = trainer.teacher_scores(trainer.model, batch)
    hidden_states = student_hidden_states(trainer, batch)
    student_head = read_head(trainer.model)
    for name, teacher in scores.items():
        kept = teacher.compared(teacher.select(rollout.kept))
        if teacher.is_top_k:
            raise ValueError(
                f"the served teacher{f' {name!r}' * bool(name)} sends TopK log-probabilities alone, and this check "
                "reads the whole distribution. Give it as teacher_model_name_or_path, or serve it with "
                "`opd-trl serve-teacher` and name a local copy beside teacher_server_url."
            )
        with whole_heads(student_head.weight, student_head.bias, *teacher.head_tensors):
            head = student_head.rows(*trainer.shared_ids.rows).detach()
            student = NextToken(teacher.select(hidden_states)[kept], head)
            everywhere = torch.zeros_like(rollout.kept)
            everywhere[slice(None) if teacher.rows is None else teacher.rows] = kept
            tokens = kept_tokens(batch, teacher, kept, num_loss_tokens=1)
            yield Scored(name, student, teacher.at(kept, *trainer.shared_ids.rows), tokens, everywhere)


def quarters_of(kept: Tensor) -> Tensor:
    """Quarter 0 to 3 of each kept token among those of its completion.

    >>> quarters_of(torch.tensor([[False, True, True, True, True], [True, True, False, False, False]])).tolist()
    [0, 1, 2, 3, 0, 2]
    """
    place, length = kept.cumsum(-1) - 1, kept.sum(-1, keepdim=True).clamp(min=1)
    return (4 * place // length)[kept]


def student_hidden_states(trainer, batch: dict[str, Any]) -> Tensor:
    """The student's hidden states `(B, T, H)` at the completions of a batch, after the student's prompts."""
    input_ids, attention_mask = join(
        batch["prompt_ids"], batch["prompt_mask"], batch["completion_ids"], batch["completion_mask"]
    )
    with trainer.accelerator.autocast():
        hidden_states, _ = completion_hidden_states(
            trainer.model,
            input_ids,
            attention_mask,
            batch["completion_ids"].size(1),
            multimodal=multimodal_inputs(batch),
        )
    return hidden_states


@contextmanager
def only_block(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """Let gradients reach the trained parameters of the last layer alone, and yield them by name."""
    trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
    block = last_layer(trained)
    try:
        for name, parameter in trained.items():
            parameter.requires_grad_(name in block)
        yield block
    finally:
        for parameter in trained.values():
            parameter.requires_grad_(True)


def last_layer(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters with the highest layer number in their names; all of them where no name has one.

    >>> list(last_layer({"layers.0.w": None, "layers.1.w": None, "norm": None}))
    ['layers.1.w']
    """
    numbers = {name: int(found[1]) for name in parameters if (found := re.search(r"\.(\d+)\.", f".{name}"))}
    last = max(numbers.values(), default=None)
    return parameters if last is None else {name: parameters[name] for name in numbers if numbers[name] == last}
