"""GRPOTrainer with what the rest of the package reads of it: nobody else knows TRL's private names."""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType
from torch import Tensor, nn
from trl import GRPOTrainer

from ..data.row_images import kinds_in
from ..models.loading import Tokenizer
from ..models.merged import merged_adapters
from ..models.multimodal import MULTIMODAL_KEYS, ReadPrompt
from ..models.sharding import is_sharded
from .agents import check_tool_images, turns_allowed
from .images import as_read


@contextmanager
def with_values(owner: Any, **values: Any) -> Iterator[None]:
    """These attributes have these values inside, and their own again behind."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


class OpenTrainer(GRPOTrainer):
    """A GRPOTrainer whose state and steps have public names."""

    _prompts: list[Any]  # what the student was given last
    _batch_environments: list[str | None] | None = None  # of its rows

    @property
    def tokenizer(self) -> Tokenizer:
        """The student's tokenizer, also where a processor wraps it."""
        return self._tokenizer

    @property
    def last_completions(self) -> list[Any]:
        """The completions that TRL keeps for its log, the newest last."""
        return list(self._logs["completion"])

    def tokenize(self, prompts: list, rows: list[dict[str, Any]] | None = None) -> list[list[int]]:
        """Token ids of prompts as the student reads them: its chat template, its tools, or those of its environment.

        `rows` are those of the prompts, default those of the last batch: with several environments each names its own.
        """
        with nullcontext() if rows is None else self._told_of(rows):
            return self._tokenize_prompts(prompts)[0]

    @contextmanager
    def _told_of(self, rows: list[dict[str, Any]]) -> Iterator[None]:
        """Prompts that are tokenized inside tell of the tools of these rows' environments."""
        if self.environment_factories is None:
            yield
            return
        names = [row.get("environment") if self._multi_environment else None for row in rows]
        with with_values(self, _batch_environments=names):
            yield

    def read_prompts(self, prompts: list, rows: list[dict[str, Any]]) -> list[ReadPrompt]:
        """Prompts of rows as the student reads them, each with what its processor makes of its images."""
        if not any("image" in kinds_in(prompt) for prompt in prompts):
            return [ReadPrompt(ids) for ids in self.tokenize(prompts, rows)]
        return [self._read_alone(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

    def _read_alone(self, prompt: Any, row: dict[str, Any]) -> ReadPrompt:
        """One prompt of a batch: how many rows of a tensor belong to it is known to its processor alone."""
        with self._told_of([row]):
            (ids,), _, found = self._tokenize_prompts([prompt])
        found = {name: torch.as_tensor(np.array(x)) for name, x in found.items() if name in MULTIMODAL_KEYS}
        return ReadPrompt(ids, super(GRPOTrainer, self)._prepare_inputs(found) if found else {})

    def _tokenize_prompts(self, prompts):
        """TRL's; the images of a prompt without any are none of a list, which processors take, and not None."""
        ids, images, fields = super()._tokenize_prompts(prompts)
        return ids, images and [x or [] for x in images], fields

    def given_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the last batch with the prompts that the student was given: images, what an environment added."""
        read = as_read(rows, self.args.privileged_context_column)
        return [{**row, "prompt": prompt} for row, prompt in zip(read, self._prompts, strict=True)]

    def answer(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Let the student answer rows of a data set, and the teachers that score ahead score them: a batch."""
        return self._generate_and_score_completions(rows)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the student answer beside the run, which keeps its modes, its metrics and its log of completions."""
        modes = [(part, part.training) for part in self.model.modules()]
        metrics, logs = copy.deepcopy((self._metrics, self._logs))
        try:
            yield
        finally:
            self._metrics, self._logs = metrics, logs
            for part, mode in modes:
                part.training = mode

    def batch_loss(self, batch: dict[str, Any]) -> Tensor:
        """The loss of a micro-batch, to be differentiated."""
        return self._compute_loss(self.model, batch)

    def go_on(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
        """Let the student go on behind token ids, without images: its own ids, and log-probs where vLLM gives them."""
        return self._generate_single_turn(prompt_ids, None, {}, self.num_generations)

    @contextmanager
    def rollout_limit(self, tokens: int) -> Iterator[None]:
        """Whatever samples inside, TRL's `generate`, vLLM or a turn behind a tool, stops after so many tokens."""
        limit = {"max_completion_length": tokens}
        sampler = (
            with_values(self.vllm_generation, **limit)
            if self.use_vllm
            else with_values(self.generation_config, max_new_tokens=tokens)
        )
        with with_values(self, **limit), sampler:
            yield

    @contextmanager
    def metrics_named(self, rename: Callable[[str], str]) -> Iterator[None]:
        """What is logged inside has another name. TRL's count of all tokens keeps its own."""
        mode = "train" if self.model.training else "eval"
        before, self._metrics[mode] = self._metrics[mode], defaultdict(list)
        try:
            yield
        finally:
            inside, self._metrics[mode] = self._metrics[mode], before
            before["num_tokens"] = inside.pop("num_tokens", before["num_tokens"])
            for name, values in inside.items():
                before[rename(name)] += values

    def _generate_and_score_completions(self, inputs):
        return super()._generate_and_score_completions(as_read(inputs, self.args.privileged_context_column))

    def _generate_single_turn(self, *args, **kwargs):
        """TRL's; a LoRA student samples merged, unless vLLM merges it or TRL casts it (continuous batching)."""
        casts = self.use_transformers_continuous_batching and (self.args.bf16 or self.args.fp16)
        as_it_is = self.use_vllm or casts or is_sharded(self)
        with nullcontext() if as_it_is else merged_adapters(self.accelerator.unwrap_model(self.model)):
            return super()._generate_single_turn(*args, **kwargs)

    def _tool_call_loop(self, *args, **kwargs):
        """TRL's, as deep as the run allows at this step; refuses images that a tool answers with."""
        most = turns = self.max_tool_calling_iterations + 1
        if self.model.training and self.args.tool_depth_start is not None:
            turns = turns_allowed(self.args, self.state.global_step, most)
            self.running_metrics["tools/turns_allowed"].append(turns)
        with with_values(self, max_tool_calling_iterations=turns - 1):
            found = super()._tool_call_loop(*args, **kwargs)
        check_tool_images(found[-1])
        return found

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
