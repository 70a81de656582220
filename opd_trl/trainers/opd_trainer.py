"""OPDTrainer: TRL's GRPOTrainer with a teacher and the distillation loss."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from trl.models.utils import _ForwardRedirection
from trl.trainer.grpo_trainer import RewardFunc

from ..given import FullSignature, all_parameters
from ..losses.fused import distillation_loss
from ..models.loading import ProcessingClass, copy_student
from ..models.micro_batches import by_length, spread
from ..teachers import Teacher, own_logits
from ..teachers.scores import Scores
from ..teachers.several import routing
from ..teachers.shared_prefix import SHARED
from .config.opd_config import OPDConfig
from .config.published_methods import PAPER
from .figures import StepFigures
from .generation import given_text
from .generation.plans import Rollouts, planned
from .images import check_images
from .input_checks import check_args, check_data, check_peft, check_student, load_processing_class, tokenizer_of
from .monitoring import add_monitor
from .open_trainer import OpenTrainer
from .other_contexts import OtherContexts, with_other_contexts
from .passes import build_objective, build_token_weight, loss_mask, student_pass, understood
from .phases import STUDENT, timed
from .placement import find_teachers, load_student, teacher_errors
from .readable import check_batch_lengths, check_readable, rows_within_budget
from .resume import Checkpoints
from .rewards import (
    check_rewards,
    distillation_coef,
    distilled_rows,
    drop_stand_in,
    no_reward,
    rows_stay_for,
    share_of_rows,
    sibling_contexts,
)
from .scoring import as_fused_model, build_reference, needs_student_at_start, token_logps
from .shaping import shaped_advantages
from .teacher_prompts import TeacherPrompts, row_checks


class OPDTrainer(Checkpoints, OtherContexts, OpenTrainer):
    r"""On-policy distillation: the student samples completions, a teacher scores them token by token.

    Everything of [`~trl.GRPOTrainer`] stays: vLLM, tools, several generations, a KL anchor (`beta`), rewards to mix
    in. What is added: a teacher, its own view of the prompt, and a divergence on a support of token ids. One student
    forward and one teacher forward per micro-batch; no `[tokens, vocabulary]` tensor.

        loss = distillation_coef * sum_t divergence_t / (kept tokens of the global batch)  [+ GRPO's policy loss]

    Args:
        model: the student, as in GRPOTrainer: path, hub id, model or `PeftModel`.
        reward_funcs: optional; their policy loss is added with weight `args.policy_coef`.
        args: an [`OPDConfig`].
        train_dataset: rows with a `"prompt"` (text or messages) and, where the teacher sees more than the student, a
            column `args.privileged_context_column`.
        eval_dataset, processing_class: as in GRPOTrainer.
        teacher_model: path, hub id, model or URL of a server, or a mapping from names to several of them; default
            what `args` names. They are frozen.
        teacher_processing_class: the teacher's tokenizer, where it cannot be loaded from the teacher's path.
        kwargs: any other argument of GRPOTrainer, such as `peft_config`, `callbacks`, `tools`.

    Raises:
        ValueError, TypeError: data, tokenizers or arguments that cannot work; before anything is written.

    Example:
        ```python
        args = OPDConfig(output_dir="out")
        trainer = OPDTrainer("Qwen/Qwen3-1.7B", teacher_model="Qwen/Qwen3-8B", args=args, train_dataset=dataset)
        trainer.train()
        ```
    """

    _tag_names = ["trl", "opd"]  # noqa: RUF012 - TRL's own attribute
    _name = "OPD"
    _paper = PAPER
    config_class = OPDConfig
    requires_privileged_context = False
    max_prompt_length = None  # TRL's scripts read this and the next: no prompt is cut here
    teacher_model = property(lambda self: self.teacher.module(self.model))
    num_rows = property(lambda self: self.shared_ids.num_rows)
    __signature__ = FullSignature()
    distillation_loss = staticmethod(distillation_loss)

    def __init__(
        self,
        model: str | nn.Module,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: OPDConfig | None = None,
        train_dataset: routing.DataSet | None = None,
        eval_dataset: routing.DataSet | dict[str, routing.DataSet] | None = None,
        processing_class: ProcessingClass | None = None,
        *,
        teacher_model: str | nn.Module | dict[str, str | nn.Module] | None = None,
        teacher_processing_class: ProcessingClass | None = None,
        **kwargs: Any,
    ):
        args = check_args(type(self), model, args, reward_funcs, kwargs, known=all_parameters(OPDTrainer))
        processing_class = load_processing_class(model, args) if processing_class is None else processing_class
        model = load_student(model, args, kwargs)
        check_peft(model, kwargs.get("peft_config"), args)
        check_student(model, args, tokenizer_of(processing_class))
        self.row_checks = row_checks(args, processing_class, kwargs)
        train_dataset = with_other_contexts(args, train_dataset, "train")
        eval_dataset = with_other_contexts(args, eval_dataset, "eval")
        check_data(self.row_checks, args, train_dataset, eval_dataset, required=self.requires_privileged_context)
        given_text.check_given(self.row_checks, args)
        teachers = self._find_teachers(model, teacher_model, args, processing_class, teacher_processing_class)
        named = routing.named_teachers(teacher_model, **args.teacher_fields)
        with teacher_errors():
            routing.check_routes(train_dataset, eval_dataset, names=list(named), mix=args.teacher_mix)
            check_images(args, self.row_checks.sets, processing_class, model, named)
        initial_copy = self._copy_student(model, args, kwargs)

        super().__init__(
            model=model,
            reward_funcs=reward_funcs or no_reward,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.monitor = add_monitor(self, privileged=self.row_checks.view is not None)
        self.has_rewards = drop_stand_in(self)
        check_rewards(self)
        # Without these, GRPO's own loss is a constant and only its auxiliary loss of experts counts.
        self.policy_is_active = self.has_rewards or self.beta != 0.0 or self._entropy_bonus_enabled
        self.vllm_importance_sampling_correction &= self.policy_is_active  # it corrects the policy loss alone
        self.rollouts = Rollouts(self)
        self.teachers = self._build_teachers(teachers, initial_copy)
        self.shared_ids = routing.prepare(self, self.teachers)
        own_logits.prepare_student(self)
        self.reference = build_reference(self, initial_copy)
        self.objective = build_objective(args, self.temperature, self.num_rows, self.accelerator.device)
        self.token_weight = build_token_weight(args)
        self.figures = StepFigures(self)
        self.teacher_prompts = TeacherPrompts(self, self.row_checks.view)
        check_readable(self)

    def _find_teachers(self, model, teacher_model, args, processing_class, teacher_processing_class) -> dict[str, Any]:
        """Name -> what builds the teacher, all checked; a single one has the empty name."""
        others = None if teacher_processing_class is None else tokenizer_of(teacher_processing_class)
        with teacher_errors():
            named = routing.named_teachers(teacher_model, **args.teacher_fields)
            return find_teachers(named, model, args, tokenizer_of(processing_class), others)

    def _copy_student(self, model, args, kwargs):
        """A copy of the student at step 0 where something needs it, before TRL changes the student."""
        return copy_student(model, kwargs) if needs_student_at_start(args) else None

    def _build_teachers(self, found: dict[str, Any], initial_copy) -> dict[str, Teacher]:
        return {name: build() for name, build in found.items()}

    @property
    def teacher(self) -> Teacher:
        """The teacher, or the first of several."""
        return next(iter(self.teachers.values()))

    # The batch

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        mix = (self.args.teacher_mix,) if isinstance(self.args.teacher_mix, str) else ()
        columns = (self.args.privileged_context_column, routing.TEACHER_COLUMN, *mix, *given_text.COLUMNS)
        self._signature_columns += [column for column in columns if column not in self._signature_columns]

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self._prompts, self._completions = prompts, completions
        if self.has_rewards:
            self.last_rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            return self.last_rewards
        return torch.zeros(len(prompts) * self.accelerator.num_processes, 1, device=self.accelerator.device)

    @timed("generation")
    @planned
    def _generate_and_score_completions(self, inputs):
        self.row_checks.check_batch(inputs)
        output = super()._generate_and_score_completions(inputs)
        check_batch_lengths(self, inputs, output["prompt_mask"])
        if not self.has_rewards:
            for name in ("reward", "reward_std", "frac_reward_zero_std"):
                self.running_metrics.pop(name, None)
        contexts = sibling_contexts(self, inputs, self._completions) if self.args.sibling_context else None
        output |= routing.row_entries(inputs, self.teachers, self.args.teacher_mix, self.accelerator.device)
        output |= self.teacher_prompts.entries(self.given_rows(inputs), output, contexts=contexts)
        mask = loss_mask(self.args, output, self.tokenizer) * distilled_rows(self, len(inputs), contexts)
        output["loss_mask"] = mask = mask * understood(self, output, mask)
        output["num_loss_tokens"] = self.accelerator.gather(mask.sum()).sum()
        output[SHARED] = self.teacher_prompts.shared_tokens(output)
        return output | token_logps(self, output) | self.score_ahead(output)

    def _prepare_inputs(self, generation_batch):
        if isinstance(generation_batch, dict):  # a micro-batch
            return generation_batch
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before or not self.rows_may_move:
            return inputs
        calls, every = self._buffered_inputs, self._calls_together
        parts = (calls[i : i + every] for i in range(0, len(calls), every))
        self._buffered_inputs = [call for part in parts for call in self._by_length(part)]
        return self._buffered_inputs[self._step % len(calls)]

    @property
    def _calls_together(self) -> int:
        """Micro-batches of TRL's whose rows are those of one optimizer step, or of a part of it."""
        return math.gcd(self.args.steps_per_generation, self.args.gradient_accumulation_steps)

    def _by_length(self, calls: list[dict[str, Any]]) -> list[Any]:
        """The rows of an optimizer step in micro-batches: one for each call, or a list by `micro_batch_tokens`."""
        if self.args.micro_batch_tokens is None:
            return by_length(calls)
        return spread(by_length(calls, sizes=lambda batch, order: rows_within_budget(self, batch, order)), len(calls))

    @property
    def num_forwards(self) -> int:
        """How many micro-batches the rows of this optimizer step make."""
        first = self._step % self.args.steps_per_generation // self._calls_together * self._calls_together
        calls = self._buffered_inputs[first : first + self._calls_together]
        return sum(len(call) if isinstance(call, list) else 1 for call in calls)

    @property
    def rows_may_move(self) -> bool:
        """Is the loss of a step the same whichever of its rows share a micro-batch?"""
        return not rows_stay_for(self)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        """The old log-probs of a policy loss; where there is none, that forward is spared."""
        if not self.policy_is_active:
            return None, None, None
        return super()._get_per_token_logps_and_entropies(as_fused_model(self, model), *args, **kwargs)

    # The loss

    def run_inside(self, wrapped: nn.Module, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call `function(plain model, ...)` inside the engine's forward, which makes sharded weights whole."""
        plain = self.accelerator.unwrap_model(wrapped)
        return _ForwardRedirection()(wrapped, plain, function, plain, *args, **kwargs)

    @timed("teacher")
    def score_ahead(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Scores of a generation batch by the teachers that do not wait for micro-batches, as entries of it."""
        return routing.score_ahead(self, self.teachers, batch)

    @timed("teacher")
    def teacher_scores(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Scores]:
        """What each teacher says of a micro-batch."""
        return routing.score(self, self.teachers, model, inputs)

    @timed(STUDENT)
    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        return super().training_step(model, inputs, num_items_in_batch)

    def _compute_loss(self, model, inputs):
        scores = self.teacher_scores(model, inputs)
        with self.accelerator.autocast():
            result = self.run_inside(
                model,
                student_pass,
                inputs,
                scores,
                objective=self.objective,
                num_rows=self.num_rows,
                excluded=self.shared_ids.excluded,
                num_loss_tokens=self._num_loss_tokens(inputs),
                router_loss=self.aux_loss_enabled,
                policy_temperature=self.temperature if self.policy_is_active else None,
                distillation_loss=self.distillation_loss,
                token_weight=self.token_weight,
            )
        self.figures.add(result.stats, inputs, scores)
        loss = distillation_coef(self.args, self.state) * result.loss
        if self.policy_is_active:
            out = SimpleNamespace(log_probs=result.per_token_logps, entropy=result.entropies, aux_loss=result.aux_loss)
            advantages = shaped_advantages(self, inputs, result.stats, scores)
            inputs = {**inputs, "advantages": self.args.policy_coef * advantages}
            return loss + share_of_rows(self, inputs) * super()._compute_loss(lambda **_: out, inputs)
        if self.aux_loss_enabled:
            self.running_metrics["aux_loss"].append(self.accelerator.gather(result.aux_loss.detach()).mean().item())
            loss = loss + self.router_aux_loss_coef * result.aux_loss / self.num_micro_batches
        return loss

    def _num_loss_tokens(self, inputs) -> Tensor:
        """Kept tokens of the whole global batch, per process since engines average over processes.

        `num_loss_tokens` counts a generation batch, which can feed several optimizer steps: each gets its share.
        """
        tokens = inputs["num_loss_tokens"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            tokens = tokens * self.num_micro_batches / self.args.steps_per_generation
        return tokens
