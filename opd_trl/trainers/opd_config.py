"""Configuration of OPDTrainer: what is distilled, on which tokens, from whom."""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from ..given import Settings, check_types, tells_what_is_given
from .config_checks import PROCESSES, SEPARATE_TEACHERS, SingleGeneration, check_config, choose_device
from .published_methods import FIELDS, apply_method


@tells_what_is_given("use_cpu", "logging_steps", *FIELDS, shared="privileged_context_column")
@dataclass
class OPDConfig(GRPOConfig, metaclass=Settings):
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
        *("teacher_model_init_kwargs", "teacher_chat_template_kwargs", "teachers", "teacher_mix"),
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

    # Teacher
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Separate teacher: hub id or path. See teacher_vocabulary for its tokenizer."},
    )
    teacher_vocabulary: str = field(
        default="auto",
        metadata={
            "help": "same: the teacher's tokens are the student's, id by id; shared: compare those that are; auto: "
            "same, or shared where 99 in 100 of the student's are the teacher's too; text: another tokenizer."
        },
    )
    teacher_model_revision: str | None = field(
        default=None, metadata={"help": "Revision of the teacher: branch, tag or commit."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments (JSON) of the teacher's from_pretrained, e.g. dtype, device_map."},
    )
    teacher_server_url: str | None = field(
        default=None,
        metadata={
            "help": "Separate teacher behind HTTP: `opd-trl serve-teacher` or vLLM's pooling runner (every "
            "loss_support), or vLLM's completions (teacher, intersection, sampled). Key in OPD_TRL_API_KEY. "
            "teacher_model_name_or_path beside it: the LM head of a pooling runner; else both are compared."
        },
    )
    teacher_server_timeout: float = field(
        default=300.0, metadata={"help": "Seconds until the answer of a teacher server must be whole."}
    )
    teacher_server_retries: int = field(
        default=8, metadata={"help": "Further attempts of a failed request, after 1, 2, 4, ... at most 30 seconds."}
    )
    teacher_server_concurrency: int = field(
        default=8, metadata={"help": "Requests of one process to a teacher server at a time."}
    )
    teachers: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Several teachers: a mapping (JSON) from a name to a model or a server's URL. The data set's "
            "column `teacher` names each row's."
        },
    )
    teacher_mix: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "One target of all teachers: a mapping (JSON) from each one's name to its weight, or a column of "
            "such mappings. Weights sum to 1."
        },
    )
    teacher_mean: str = field(
        default="arithmetic",
        metadata={"help": "Mean of their distributions: arithmetic, what any of them does; geometric, what all do."},
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Chat-template arguments (JSON) of the teacher's prompt. Default: chat_template_kwargs."},
    )
    teacher_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Completions that a teacher with its own frozen weights scores at once (a server: per request), "
            "ahead of the student's micro-batches. Default: with each of them."
        },
    )
    teacher_offload: str | None = field(
        default=None,
        metadata={"help": "cpu: a teacher with frozen weights lies in CPU memory except while it scores."},
    )
    max_teacher_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Longest teacher prompt in tokens. A longer one is an error that names its row, never cut."},
    )

    # Privileged context: what only the teacher sees
    privileged_context_column: str = field(
        default="privileged_context",
        metadata={"help": "Data set column with the text (or messages) that only the teacher sees."},
    )
    privileged_context: str | None = field(
        default=None, metadata={"help": "One text for all rows in place of a column: a system prompt, a constitution."}
    )
    privileged_context_file: str | None = field(
        default=None, metadata={"help": "The same from a file: text, or a .json list of chat messages for few_shot."}
    )
    sibling_context: bool = field(
        default=False,
        metadata={
            "help": "The context of a completion is the first other one of its prompt that the rewards call correct "
            "(SDPO); without one, the row's own column; without that, no loss."
        },
    )
    privileged_builder: str = field(
        default="system_prompt",
        metadata={
            "help": "How prompt and privileged context make the teacher's prompt: system_prompt, answer, solution, "
            "hint, feedback, few_shot, document, or an import path 'package.module:function'."
        },
    )
    privileged_template: str | None = field(
        default=None,
        metadata={"help": "Jinja template in place of the builder's own wording; variables: prompt, context."},
    )

    # Loss
    divergence: str = field(
        default="reverse_kl",
        metadata={
            "help": "reverse_kl sharpens on what the student does; forward_kl finds modes that it lacks; jsd lies "
            "between; mixed = (1 - divergence_beta) forward + divergence_beta reverse."
        },
    )
    divergence_beta: float = field(
        default=0.5,
        metadata={"help": "Share of the reverse side in jsd and mixed, 0 to 1. (beta is GRPO's KL anchor.)"},
    )
    loss_support: str = field(
        default="student",
        metadata={
            "help": "Token ids compared per position: TopK of the student, of the teacher, their intersection, their "
            "union; full (whole vocabulary); sampled (policy gradient on the sampled token)."
        },
    )
    loss_top_k: int = field(
        default=20, metadata={"help": "K of the TopK supports. (top_k is TRL's sampling parameter.)"}
    )
    loss_tail: str = field(
        default="renormalize",
        metadata={
            "help": "Probability outside the support: renormalize both models on it; bucket = one more category; "
            "drop; reweight = drop, over the student's mass on the support (policy gradient)."
        },
    )
    stop_gradient: bool = field(
        default=True,
        metadata={"help": "Hold the log-ratio of the reverse KL constant (eq. 12): the unbiased TopK gradient."},
    )
    loss_pointwise_clip: float | None = field(
        default=None,
        metadata={"help": "Upper bound of each vocabulary entry's signed term (OPSD: 0.05); negative terms stay."},
    )
    loss_baseline: str | None = field(
        default=None,
        metadata={
            "help": "With loss_support sampled: subtract minus the reverse KL from the advantage, full, or top_k: on "
            "the student's renormalised TopK (vOPD). Less variance, the same expectation."
        },
    )
    loss_extrapolation: float = field(
        default=1.0,
        metadata={"help": "With loss_support sampled: above 1 goes beyond the teacher, away from a reference model."},
    )
    reference_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Reference model of loss_extrapolation. Default: the student at step 0."}
    )
    loss_importance_cap: float | None = field(
        default=None,
        metadata={"help": "Weight tokens by min(student now / at sampling, cap): for vLLM and reused generations."},
    )
    loss_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of both distributions in the loss. Default: that of sampling."}
    )
    loss_memory_mib: int | None = field(
        default=None,
        metadata={
            "help": "MiB for the logits of student and teacher that live at once; sets how many tokens reach the LM "
            "head at a time, not the result. Default: 128 on a CPU, 1024 on an accelerator."
        },
    )
    micro_batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Most tokens of a micro-batch (rows x the longest one), in place of its number of rows."},
    )
    num_loss_tokens_to_skip: int = field(
        default=0, metadata={"help": "First completion tokens left out of the distillation loss."}
    )
    loss_skip_first: list[str] | None = field(
        default=None,
        metadata={"help": "Texts whose tokens have no loss at their first place in a completion, e.g. <think>."},
    )
    distillation_coef: float = field(default=1.0, metadata={"help": "Weight of the distillation loss."})
    distillation_coef_schedule: str = field(
        default="constant",
        metadata={"help": "constant, or linear: from distillation_coef to distillation_coef_end over the run."},
    )
    distillation_coef_end: float = field(
        default=0.0, metadata={"help": "Weight of the distillation loss at the end of a linear schedule."}
    )
    distillation_gate: str | None = field(
        default=None,
        metadata={"help": "Distil only completions that the rewards call correct, or only incorrect ones."},
    )
    distillation_gate_threshold: float = field(
        default=0.5, metadata={"help": "Weighted sum of rewards from which a completion counts as correct."}
    )
    policy_coef: float = field(
        default=1.0, metadata={"help": "Weight of GRPO's policy loss where reward functions are given."}
    )

    # Monitor
    monitor: bool = field(
        default=True,
        metadata={
            "help": "Warn once of each sign of a failing run in the logged lines (it sees no others: keep "
            "logging_steps small), and write output_dir/run_log for `opd-trl report`."
        },
    )
    monitor_stop: bool = field(default=False, metadata={"help": "Save and stop at the first warning of the monitor."})

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

    @property
    def teaches_itself(self) -> bool:
        """Is the student its own teacher? A configuration with `teacher_model_kind` says so."""
        return hasattr(self, "teacher_model_kind")

    @property
    def temperature_of_loss(self) -> float:
        """Temperature of both distributions in the loss."""
        return self.temperature if self.loss_temperature is None else self.loss_temperature

    @property
    def has_shared_context(self) -> bool:
        """Is one privileged context shared by all rows?"""
        return self.privileged_context is not None or self.privileged_context_file is not None

    @property
    def teacher_rows_ahead(self) -> int | None:
        """Completions that the teacher scores at once, ahead of the micro-batches; None: with each of them."""
        if self.teacher_batch_size is None and self.teacher_offload is not None:
            return self.per_device_train_batch_size
        return self.teacher_batch_size
