"""What every teacher can do: the one interface behind which models, adapters and servers stand."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn

from ..losses.head import Head
from ..models.forward import (
    completion_hidden_states,
    read_head,
    vocabulary_rows,
    window_of,
)
from ..models.micro_batches import longest_first
from ..models.multimodal import multimodal_inputs, teacher_multimodal_inputs
from ..models.sequences import join
from ..models.sharding import is_sharded
from .scores import HIDDEN, HiddenStates, Scores, select
from .shared_prefix import FEWEST, SHARED, SharedPrefix, holds_text_alone
from .vocabulary import SharedIds


logger = get_logger(__name__)


class Host(Protocol):
    """What a teacher reads of the trainer that it works for; `OPDTrainer` is one."""

    accelerator: Any
    args: Any
    state: Any
    tokenizer: Any
    model: nn.Module  #: the student
    objective: Any  #: temperature and chunk size of the loss
    shared_ids: SharedIds  #: on which the student is compared with all of its teachers
    model_wrapped: nn.Module  #: the student as the engine wrapped it (DDP, DeepSpeed, FSDP)
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool

    def run_inside(self, wrapped: nn.Module, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call `function(plain model, ...)` inside the engine's forward, so that sharded weights are there."""


class Teacher:
    """Scores the student's completions. A kind of teacher overrides what is different about it.

    A teacher scores each micro-batch together with the student (`score`), or whole generation batches ahead of it
    (`score_ahead`, then `read_ahead` for each micro-batch). The order of the calls: `check_placement` and `prepare`
    once, then scores, then `update` after each optimizer step, `save` and `load` with each checkpoint.

    Attributes:
        model: a model of its own; None where it is the student's module, or lies elsewhere.
        moves: does `update` change it, so that a checkpoint must hold it?
        is_frozen: does it say the same of a text at every step?
        can_write: can it write answers of its own in this process?
        is_elsewhere: does a server answer for it?
        gives_hidden_states: or log-probabilities that are normalised over its whole vocabulary?
        shared_ids: which ids of the student it knows; set by `prepare`.
        window: longest prompt and completion together, in tokens; None where it has no limit. Set by `prepare`.
        prefix: what it has read of the text that all prompts share; None where they share none yet.
    """

    model: nn.Module | None = None
    moves: bool = False
    is_frozen: bool = True
    can_write: bool = True
    is_elsewhere: bool = False
    gives_hidden_states: bool = True
    shared_ids: SharedIds
    window: int | None = None
    prefix: SharedPrefix | None = None

    @property
    def parts(self) -> tuple["Teacher", ...]:
        """The teachers that it is made of: itself, or those that it is a mean of."""
        return (self,)

    def check_placement(self, host: Host) -> None:
        """Raise ValueError for what this kind of teacher cannot do under the engine and the settings of the host."""
        if host.args.teacher_rows_ahead is not None:
            self._refuse_scoring_ahead(host, "is the student with other adapters")

    def prepare(self, host: Host) -> None:
        """Get ready to score: hand a model of its own to the engine, and learn `shared_ids` and `window`."""
        student = host.model.config.get_text_config()
        self.shared_ids, self.window = SharedIds(vocabulary_rows(student)), window_of(student)

    def source(self, host: Host) -> str:
        """Where it comes from, as the run log names it: a path, an address, how it is made of the student."""
        return f"the student ({host.args.teacher_model_kind})"

    def module(self, student: nn.Module) -> nn.Module:
        """The module that holds its weights: its own, or else the student's."""
        return student if self.model is None else self.model

    def scoring(self, student: nn.Module) -> AbstractContextManager[nn.Module]:
        """Context that yields the module which scores, without gradients and dropout.

        Args:
            student: as the engine wrapped it, since only calling that keeps sharded weights right.
        """
        raise NotImplementedError(f"{type(self).__name__} has no module in this process.")

    def scores_ahead(self, host: Host) -> bool:
        """Does it score whole generation batches, ahead of the student's micro-batches?"""
        return host.args.teacher_rows_ahead is not None

    def score(self, host: Host, student: nn.Module, batch: dict[str, Any], rows: Tensor | None) -> Scores:
        """Scores of its rows of a micro-batch.

        Args:
            host: the trainer.
            student: as the engine wrapped it.
            batch: the micro-batch.
            rows: `(B,)` bool, its rows; None for all.
        """
        with self.scoring(student) as module, host.accelerator.autocast():
            if rows is None:
                return HiddenStates(None, *self._forward(host, module, batch))
            # A sharded teacher runs on every rank: with a row of another teacher where it has none.
            part = select(batch, rows if rows.any() else torch.zeros_like(rows[:1], dtype=torch.int64))
            hidden_states, head = self._forward(host, module, part)
            return HiddenStates(rows, hidden_states[: rows.sum()], head)

    @torch.no_grad()
    def score_ahead(self, host: Host, batch: dict[str, Any], rows: Tensor | None) -> dict[str, Tensor]:
        """Scores of its rows of a generation batch, as entries `(b, T, ...)` of that batch.

        `teacher_rows_ahead` rows of about one length go into a forward. A sharded teacher runs equally often on all
        ranks: with a row of another teacher where it has none.
        """
        parts, scored = [], []
        with self.scoring(host.model_wrapped) as module, host.accelerator.autocast():
            for part in longest_first(batch).split(host.args.teacher_rows_ahead):
                own = part if rows is None else part[rows[part]]
                if len(own) or is_sharded(host):
                    hidden_states, _ = self._forward(host, module, select(batch, own if len(own) else part[:1]))
                    parts.append(hidden_states[: len(own)])
                    scored.append(own)
        return {HIDDEN: torch.cat(parts)[torch.cat(scored).argsort()]}

    def read_ahead(self, host: Host, batch: dict[str, Any], rows: Tensor | None) -> Scores:
        """What `score_ahead` left in the batch for its rows."""
        head = read_head(host.accelerator.unwrap_model(self.model))
        return HiddenStates(rows, Scores(rows).select(batch[HIDDEN]), head)

    def update(self, student: nn.Module) -> None:
        """Move towards the student (unwrapped). A teacher that never moves does nothing."""

    def save(self, host: Host, folder: Path) -> None:
        """Save what `update` has made of it, where the student's checkpoint does not hold it already."""

    def load(self, host: Host, folder: Path) -> None:
        """Take up what a checkpoint holds of it. All ranks must call it."""

    def _forward(self, host: Host, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Head]:
        """Hidden states `(b, T, H)` of the completions, inside the engine's forward, and the head that reads them."""
        hidden_states = host.run_inside(module, teacher_pass, batch, **self.reading(host, module, batch))
        return hidden_states, read_head(host.accelerator.unwrap_model(module))

    def reading(self, host: Host, module: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """Options of `teacher_pass`, so that what rows begin with is computed once; none where that cannot be."""
        if not holds_text_alone(batch):
            return {}
        if is_sharded(host):
            if int(batch[SHARED]) >= FEWEST:
                logger.warning_once(
                    "The text that all prompts share is read with each row: this engine shards the teacher."
                )
            return {}
        self.prefix = self.prefix or SharedPrefix()
        moment = None if self.is_frozen else (host.state.global_step, sum(x._version for x in module.parameters()))
        return {"shared": self.prefix, "moment": moment}

    def _refuse_scoring_ahead(self, host: Host, why: str) -> None:
        fields = "teacher_offload" if host.args.teacher_offload else "teacher_batch_size"
        raise ValueError(
            f"{fields} needs a teacher with frozen weights of its own, and this one {why}. Leave it unset: such a "
            "teacher scores the student's micro-batches."
        )


def teacher_pass(
    teacher: nn.Module, inputs: dict[str, Any], *, shared: SharedPrefix | None = None, moment: Any = None
) -> Tensor:
    """Hidden states `(B, T, H)` of the completion after the teacher's own prompt, or else after the student's.

    Runs in `Teacher.scoring`, inside the engine's forward of `teacher` (unwrapped).

    Args:
        teacher: scores.
        inputs: the micro-batch.
        shared: computes once what rows begin with.
        moment: the same as long as the teacher says the same of a text.
    """
    own_prompt = "teacher_prompt_ids" in inputs
    prefix = "teacher_" if own_prompt else ""
    prompt = inputs[f"{prefix}prompt_ids"], inputs[f"{prefix}prompt_mask"]
    if shared is not None:
        return shared.read(teacher, prompt, inputs, moment)
    input_ids, attention_mask = join(*prompt, inputs["completion_ids"], inputs["completion_mask"])
    multimodal = teacher_multimodal_inputs(inputs) if own_prompt else multimodal_inputs(inputs)
    num_tokens = inputs["completion_ids"].size(1)
    return completion_hidden_states(teacher, input_ids, attention_mask, num_tokens, multimodal=multimodal)[0]


@contextmanager
def scoring_mode(module: nn.Module) -> Iterator[nn.Module]:
    """Put `module` in evaluation mode without gradients, and give every submodule its own mode back.

    Evaluation mode switches dropout off and, in transformers, activation checkpointing too. Flags are restored one by
    one, since the module may be the student in the middle of training, with parts that its user froze.
    """
    training = [(part, part.training) for part in module.modules()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        for part, flag in training:
            part.training = flag
        for parameter, flag in requires_grad:
            parameter.requires_grad_(flag)


def path_of(host: Host, model: nn.Module) -> str:
    """Path or hub id that a model was loaded from, or its class."""
    plain = host.accelerator.unwrap_model(model)
    return getattr(plain.config, "_name_or_path", "") or type(plain).__name__
