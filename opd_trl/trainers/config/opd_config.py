"""Configuration of OPDTrainer: what is distilled, on which tokens, from whom."""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from ...given import Settings, check_types, tells_what_is_given
from .agent_fields import AgentFields
from .config_checks import PROCESSES, SEPARATE_TEACHERS, SingleGeneration, check_config, choose_device
from .loss_fields import LossFields
from .monitor_fields import MonitorFields
from .published_methods import FIELDS, apply_method
from .rollout_fields import RolloutFields
from .teacher_fields import TeacherFields


@tells_what_is_given("use_cpu", "logging_steps", *FIELDS, shared="privileged_context_column")
@dataclass
class OPDConfig(TeacherFields, LossFields, RolloutFields, AgentFields, MonitorFields, GRPOConfig, metaclass=Settings):
    r"""Configuration of [`OPDTrainer`]: on-policy distillation from a separate teacher.

    Every field of [`~trl.GRPOConfig`] keeps its name and meaning; GRPO's `beta` stays the KL anchor to the initial
    model. Two defaults differ: `num_generations=1` (distillation needs no group) and `learning_rate=2e-6` (the
    paper's). Impossible combinations are refused here, with the remedy in the message.

    Source of the defaults: "The Many Faces of On-Policy Distillation", arXiv 2605.11182 (stop-gradient and
    renormalised TopK, K = 20).

    Raises:
        TypeError, ValueError: an unknown field, a wrong type, an unknown choice, or an impossible combination.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - transformers reads this name; it is not a field
        *GRPOConfig._VALID_DICT_FIELDS,
        *("teacher_model_init_kwargs", "teacher_chat_template_kwargs"),
        *("teachers", "teacher_server_models", "teacher_mix"),
    ]

    # Method
    method: str | None = field(
        default=None,
        metadata={"help": "A published method (`opd-trl methods`) sets its fields; those set by hand win."},
    )

    # Defaults that differ from GRPOConfig
    num_generations: int | None = field(
        default=1,
        metadata={"help": "Completions sampled per prompt. More than one pays where rewards are mixed in."},
    )
    learning_rate: float = field(
        default=2e-6,
        metadata={"help": "Peak rate of AdamW; 2e-6 is the paper's for full fine-tuning. LoRA: 1e-4 to 5e-4."},
    )

    def __post_init__(self):
        check_types(self, GRPOConfig)
        apply_method(self, self._given)
        choose_device(self, self._given)
        if self.num_generations == 1:
            self.num_generations = SingleGeneration(1)
        super().__post_init__()
        self.num_generations = int(self.num_generations)
        check_config(self)

    @property
    def world_size(self) -> int:
        """Processes that train, of which batches must be multiples."""
        return PROCESSES.get() or super().world_size

    @property
    def teacher_fields(self) -> dict[str, Any]:
        """What names separate teachers, as `named_teachers` takes it."""
        return {name: getattr(self, name) for name in SEPARATE_TEACHERS}

    def model_of_server(self, name: str) -> str | None:
        """Path or hub id of what a server among the teachers serves, where one is named; a single one has no name."""
        single = self.teacher_model_name_or_path if self.teacher_server_url is not None else None
        return (self.teacher_server_models or {}).get(name, single)

    @property
    def teaches_itself(self) -> bool:
        """Is the student its own teacher? A configuration with `teacher_model_kind` says so."""
        return hasattr(self, "teacher_model_kind")

    @property
    def temperature_of_loss(self) -> float:
        """Temperature of both distributions in the loss."""
        return self.temperature if self.loss_temperature is None else self.loss_temperature

    @property
    def reuses_generations(self) -> bool:
        """Is a generation used in several optimizer steps, so that the student moves on before the last of them?"""
        return self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations) != 0

    @property
    def has_shared_context(self) -> bool:
        """Is one privileged context shared by all rows?"""
        return self.privileged_context is not None or self.privileged_context_file is not None

    @property
    def reads_given_text(self) -> bool:
        """Does the training read the completions that rows bring along?"""
        return self.lmbda < 1.0 or self.teacher_prefix_tokens is not None

    @property
    def first_rollout_limit(self) -> int | None:
        """Most tokens of a rollout at step 0; None where there is no limit."""
        return self._rollout_limit(self.rollout_length_start)

    @property
    def last_rollout_limit(self) -> int | None:
        """Most tokens of a rollout at the end of its schedule; None where there is no limit."""
        return self._rollout_limit(self.rollout_length_end)

    def _rollout_limit(self, given: float | None) -> int | None:
        """A given number of tokens, or share of `max_completion_length`, as tokens; never more than that."""
        most = self.max_completion_length
        if given is None:
            return most
        tokens = round(given) if given >= 1 else max(1, round(given * (most or 0)))
        return tokens if most is None else min(tokens, most)

    @property
    def teacher_rows_ahead(self) -> int | None:
        """Completions that the teacher scores at once, ahead of the micro-batches; None: with each of them."""
        if self.teacher_batch_size is None and self.teacher_offload is not None:
            return self.per_device_train_batch_size
        return self.teacher_batch_size
