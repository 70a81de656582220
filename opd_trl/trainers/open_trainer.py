"""GRPOTrainer with what the rest of the package reads of it: nobody else knows TRL's private names."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import DistributedType
from torch import Tensor, nn
from trl import GRPOTrainer

from ..models.loading import Tokenizer
from ..models.merged import merged_adapters
from ..models.sharding import is_sharded


class OpenTrainer(GRPOTrainer):
    """A GRPOTrainer whose state and steps have public names."""

    _prompts: list[Any]  # what the student was given last

    @property
    def tokenizer(self) -> Tokenizer:
        """The student's tokenizer, also where a processor wraps it."""
        return self._tokenizer

    @property
    def last_completions(self) -> list[Any]:
        """The completions that TRL keeps for its log, the newest last."""
        return list(self._logs["completion"])

    def tokenize(self, prompts: list) -> list[list[int]]:
        """Token ids of prompts as the student reads them: its chat template, its tools."""
        return self._tokenize_prompts(prompts)[0]

    def given_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the last batch with the prompts that the student was given: images, what an environment added."""
        return [{**row, "prompt": prompt} for row, prompt in zip(rows, self._prompts, strict=True)]

    def answer(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Let the student answer rows of a data set, and the teachers that score ahead score them: a batch."""
        return self._generate_and_score_completions(rows)

    def batch_loss(self, batch: dict[str, Any]) -> Tensor:
        """The loss of a micro-batch, to be differentiated."""
        return self._compute_loss(self.model, batch)

    def _generate_single_turn(self, *args, **kwargs):
        """TRL's; a LoRA student samples merged, unless vLLM merges it or TRL casts it (continuous batching)."""
        casts = self.use_transformers_continuous_batching and (self.args.bf16 or self.args.fp16)
        as_it_is = self.use_vllm or casts or is_sharded(self)
        with nullcontext() if as_it_is else merged_adapters(self.accelerator.unwrap_model(self.model)):
            return super()._generate_single_turn(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of one call of transformers, which may have several micro-batches here, or none.

        `_prepare_inputs` says which, as a list; all ranks have equally many. Engines synchronise in the last one of an
        optimizer step, so its last call has one.
        """
        start = time.perf_counter()
        model.train()
        self.optimizer.train()  # a schedule-free one has other weights for evaluation
        found = self._prepare_inputs(inputs)
        micro_batches = found if isinstance(found, list) else [found]
        loss = torch.zeros((), device=self.accelerator.device)
        for batch in micro_batches[:-1]:
            with self._more_to_come(model):
                loss += super(GRPOTrainer, self).training_step(model, batch, num_items_in_batch)
        self._current_train_step_time += time.perf_counter() - start
        if not micro_batches:
            self._step += 1
            return loss
        return loss + super().training_step(model, micro_batches[-1], num_items_in_batch)

    @contextmanager
    def _more_to_come(self, model: nn.Module) -> Iterator[None]:
        """Backward without synchronising, as transformers does it before the last micro-batch of an optimizer step."""
        state = self.accelerator.gradient_state
        if not state.sync_gradients:
            yield
            return
        shards = self.accelerator.distributed_type == DistributedType.DEEPSPEED  # its engine asks `sync_gradients`
        state._set_sync_gradients(False)
        try:
            with nullcontext() if shards else self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(True)

    @property
    def running_metrics(self) -> dict[str, list[float]]:
        """TRL's metrics of training or of evaluation, whichever runs."""
        return self._metrics["train"] if self.model.training else self._metrics["eval"]

    @property
    def train_metrics(self) -> dict[str, list[float]]:
        """TRL's metrics of training, whatever runs."""
        return self._metrics["train"]

    @property
    def num_micro_batches(self) -> int:
        """How many micro-batches add up to one step."""
        return self.current_gradient_accumulation_steps if self.model.training else 1
