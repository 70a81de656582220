"""OPDTrainer: TRL's GRPOTrainer with a teacher and the distillation loss."""

from types import SimpleNamespace
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor
from trl import GRPOTrainer
from trl.models.utils import _ForwardRedirection

from ..privileged import TeacherView, left_pad
from ..teachers import Teacher
from .checks import check_args, check_data, check_peft, check_student, load_processing_class, tokenizer_of
from .config import OPDConfig
from .config_checks import TOP_K_SUPPORTS
from .figures import log_distillation
from .loading import copy_student
from .masks import loss_mask
from .monitor import add_monitor
from .paper import PAPER
from .passes import loss_options, student_pass
from .phases import STUDENT, timed
from .placement import build_teacher, check_placement, find_teachers, prepare_teachers
from .resume import EpochSampler, load_default_adapter, load_generation_buffer, save_generation_buffer
from .rewards import check_rewards, distillation_coef, drop_stand_in, gate, no_reward
from .routing import TEACHER_COLUMN, check_routes, is_routed, named_teachers, teacher_index
from .scores import Scores
from .scoring import score_ahead, score_micro_batch
from .served import ServedTeacher
from .siblings import sibling_contexts
from .teacher_prompts import TeacherPrompts
from .token_logps import build_reference, needs_student_at_start, token_logps


logger = get_logger(__name__)


class OPDTrainer(GRPOTrainer):
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
        ValueError: data, tokenizers or options that cannot work; before anything is written.
        TypeError: `args` is no OPDConfig.

    Source: arXiv 2605.11182 (objective and losses); GRPOTrainer of TRL 1.16 (everything else).

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

    def __init__(
        self,
        model,
        reward_funcs=None,
        args: OPDConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        *,
        teacher_model=None,
        teacher_processing_class=None,
        **kwargs,
    ):
        args = check_args(args, model, self.config_class, self._name)
        view = TeacherView(
            builder=args.privileged_builder,
            template=args.privileged_template,
            column=args.privileged_context_column,
            text=args.privileged_context,
            file=args.privileged_context_file,
        )
        uses_context = check_data(
            train_dataset,
            eval_dataset,
            column=args.privileged_context_column,
            shared=args.has_shared_context,
            required=self.requires_privileged_context,
            siblings=args.sibling_context,
            environment=kwargs.get("environment_factory") is not None,
        )
        check_peft(model, kwargs.get("peft_config"))
        if processing_class is None:
            processing_class = load_processing_class(model, args)
        check_student(model, args, tokenizer_of(processing_class))
        teachers = self._find_teachers(model, teacher_model, args, processing_class, teacher_processing_class)
        check_routes(train_dataset, eval_dataset, names=list(teachers))
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
        self.monitor = add_monitor(self, privileged=uses_context)
        self._has_rewards = drop_stand_in(self)
        if (warning := check_rewards(args, has_rewards=self._has_rewards)) is not None:
            logger.warning(warning)
        # Without these, GRPO's own loss is a constant and only its auxiliary loss of experts counts.
        self._policy_is_active = self._has_rewards or self.beta != 0.0 or self._entropy_bonus_enabled
        if not self._policy_is_active:  # it corrects the policy loss alone
            self.vllm_importance_sampling_correction = False
        self._forward_redirection = _ForwardRedirection()
        self._may_warn_of_dropped_tail = args.loss_tail == "drop" and args.loss_support in TOP_K_SUPPORTS
        self.teachers = self._build_teachers(teachers, initial_copy)
        check_placement(self)
        self._reference = build_reference(self, initial_copy)
        self._num_rows, windows = prepare_teachers(self)
        self._loss_options = loss_options(args, self.temperature, self._num_rows, self.accelerator.device)
        limits = [args.max_teacher_prompt_length, *(window - self.max_completion_length for window in windows)]
        self._teacher_prompts = TeacherPrompts(
            self,
            view=view if uses_context else None,
            template_kwargs=args.teacher_chat_template_kwargs,
            limit=min((limit for limit in limits if limit is not None), default=None),
        )
        if args.max_teacher_prompt_length is not None and not args.sibling_context:
            self._teacher_prompts.check(train_dataset)

    # Building the teachers

    def _find_teachers(self, model, teacher_model, args, processing_class, teacher_processing_class) -> dict[str, Any]:
        """Name -> model, path or connected server, all checked; a single one has the empty name."""
        return find_teachers(
            named_teachers(teacher_model, args),
            model,
            args,
            tokenizer_of(processing_class),
            None if teacher_processing_class is None else tokenizer_of(teacher_processing_class),
        )

    def _copy_student(self, model, args, kwargs):
        """A copy of the student at step 0 where something needs it, before TRL changes the student."""
        return copy_student(model, kwargs) if needs_student_at_start(args) else None

    def _build_teachers(self, found: dict[str, Any], initial_copy) -> dict[str, Teacher | ServedTeacher]:
        return {name: build_teacher(teacher, self.args) for name, teacher in found.items()}

    @property
    def teacher(self) -> Teacher | ServedTeacher:
        """The teacher, or the first of several."""
        return next(iter(self.teachers.values()))

    # The batch

    @property
    def _own_metrics(self) -> dict[str, list[float]]:
        """TRL's metrics of training or of evaluation, whichever runs."""
        return self._metrics["train" if self.model.training else "eval"]

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        columns = (self.args.privileged_context_column, TEACHER_COLUMN)
        self._signature_columns += [column for column in columns if column not in self._signature_columns]

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self._completions = completions
        if self._has_rewards:
            self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            return self._rewards
        return torch.zeros(len(prompts) * self.accelerator.num_processes, 1, device=self.accelerator.device)

    @timed("generation")
    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if not self._has_rewards:
            for name in ("reward", "reward_std", "frac_reward_zero_std"):
                self._own_metrics.pop(name, None)
        mask, contexts = loss_mask(self.args, output, self._tokenizer), None
        if self.args.distillation_gate is not None:
            is_open = gate(self.args, self._rewards, self.reward_weights)
            self._own_metrics["distillation/gate_open"].append(is_open.float().mean().item())
            own = self.accelerator.process_index * len(inputs)  # rewards are gathered from all processes
            mask = mask * is_open[own : own + len(inputs), None]
        if self.args.sibling_context:
            contexts = sibling_contexts(self, inputs, self._completions)
            taught = torch.tensor([context is not None for context in contexts], device=mask.device)
            share = self.accelerator.gather(taught.float()).mean().item()
            self._own_metrics["distillation/has_context"].append(share)
            mask = mask * taught[:, None]
        output["loss_mask"] = mask
        output["num_loss_tokens"] = self.accelerator.gather(mask.sum()).sum()
        if self._teacher_prompts.differ:
            names = [f"row {i} of this batch (prompt {str(row['prompt'])[:80]!r})" for i, row in enumerate(inputs)]
            output["teacher_prompt_ids"], output["teacher_prompt_mask"] = left_pad(
                self._teacher_prompts.token_ids(inputs, names, contexts=contexts),
                pad_token_id=self._tokenizer.pad_token_id,
                device=self.accelerator.device,
            )
        if is_routed(self.teachers):
            output["teacher_index"] = teacher_index(inputs, list(self.teachers), self.accelerator.device)
        return output | token_logps(self, output) | score_ahead(self, output)

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        """The old log-probs of a policy loss; where there is none, that forward is spared."""
        if not self._policy_is_active:
            return None, None, None
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    # Checkpoints

    def _get_train_sampler(self, dataset=None):
        return EpochSampler(super()._get_train_sampler(dataset), self)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        save_generation_buffer(self, output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_default_adapter(self, resume_from_checkpoint)

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            load_generation_buffer(self, checkpoint)

    # The loss

    def _teacher_scores(self, model, inputs) -> dict[str, Scores]:
        """What each teacher says of a micro-batch; where another loss is wanted, wrap them here."""
        return score_micro_batch(self, model, inputs)

    @timed(STUDENT)
    def training_step(self, model, inputs, num_items_in_batch):
        return super().training_step(model, inputs, num_items_in_batch)

    def _compute_loss(self, model, inputs):
        scores = self._teacher_scores(model, inputs)
        student = self.accelerator.unwrap_model(model)
        with self.accelerator.autocast():
            result = self._forward_redirection(
                model,
                student,
                student_pass,
                student,
                inputs,
                scores,
                options=self._loss_options,
                num_rows=self._num_rows,
                num_loss_tokens=self._num_loss_tokens(inputs),
                router_loss=self.aux_loss_enabled,
                policy_temperature=self.temperature if self._policy_is_active else None,
            )
        log_distillation(self, result.stats, inputs, scores)
        loss = distillation_coef(self.args, self.state) * result.loss
        if self._policy_is_active:
            out = SimpleNamespace(log_probs=result.per_token_logps, entropy=result.entropies, aux_loss=result.aux_loss)
            inputs = {**inputs, "advantages": self.args.policy_coef * inputs["advantages"]}
            return loss + super()._compute_loss(lambda **_: out, inputs)
        if self.aux_loss_enabled:
            self._own_metrics["aux_loss"].append(self.accelerator.gather(result.aux_loss.detach()).mean().item())
            loss = loss + self.router_aux_loss_coef * result.aux_loss / self._num_micro_batches()
        return loss

    def _num_micro_batches(self) -> int:
        """Micro-batches whose gradients add up to one step."""
        return self.current_gradient_accumulation_steps if self.model.training else 1

    def _num_loss_tokens(self, inputs) -> Tensor:
        """Kept tokens of the whole global batch, per process since engines average over processes.

        `num_loss_tokens` counts a generation batch, which can feed several optimizer steps: each gets its share.
        """
        tokens = inputs["num_loss_tokens"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            tokens = tokens * self._num_micro_batches() / self.args.steps_per_generation
        return tokens
