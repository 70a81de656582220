"""Configuration of OPDTrainer and OPSDTrainer: what is distilled, on which tokens, from whom."""

import warnings
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig


DIVERGENCES = ("reverse_kl", "forward_kl", "jsd", "mixed")
TOP_K_SUPPORTS = ("student", "teacher", "intersection", "union")
SUPPORTS = (*TOP_K_SUPPORTS, "full", "sampled")
TAILS = ("drop", "bucket", "renormalize")
TEACHER_KINDS = ("base", "live", "ema")
CHOICES = {
    "divergence": DIVERGENCES,
    "loss_support": SUPPORTS,
    "loss_tail": TAILS,
    "teacher_offload": (None, "cpu"),
    "distillation_coef_schedule": ("constant", "linear"),
    "distillation_gate": (None, "correct", "incorrect"),
}


class _SingleGeneration(int):
    """The number 1, for GRPO's check that a group has at least 2 completions, which only advantages need."""

    def __lt__(self, other: int) -> bool:
        return False


@dataclass
class OPDConfig(GRPOConfig):
    r"""Configuration of [`OPDTrainer`]: on-policy distillation from a separate teacher.

    Every field of [`~trl.GRPOConfig`] keeps its name and meaning; GRPO's `beta` stays the KL anchor to the initial
    model. Two defaults differ: `num_generations=1` (distillation needs no group) and `learning_rate=2e-6` (the
    paper's). Impossible combinations are refused here, with the remedy in the message.

    Source of the defaults: "The Many Faces of On-Policy Distillation", arXiv 2605.11182 (stop-gradient and
    renormalised TopK, K = 20).

    Raises:
        ValueError: an unknown choice or an impossible combination.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - transformers reads this name; it is no field
        *GRPOConfig._VALID_DICT_FIELDS,
        "teacher_model_init_kwargs",
        "teacher_chat_template_kwargs",
    ]

    # Defaults that differ from GRPOConfig
    num_generations: int | None = field(
        default=1,
        metadata={"help": "Completions sampled per prompt. More than one pays where rewards are mixed in."},
    )
    learning_rate: float = field(
        default=2e-6,
        metadata={
            "help": "Peak learning rate of AdamW; 2e-6 is the paper's for full fine-tuning. LoRA: 1e-4 to 5e-4."
        },
    )

    # Teacher
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Separate teacher: hub id or path. Its tokenizer must be the student's, id by id."},
    )
    teacher_model_revision: str | None = field(
        default=None, metadata={"help": "Revision of the teacher: branch, tag or commit."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments (JSON) of the teacher's from_pretrained, e.g. dtype, device_map."},
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Chat-template arguments (JSON) of the teacher's prompt, e.g. enable_thinking. Default: the "
            "student's chat_template_kwargs."
        },
    )
    teacher_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Completions that a teacher with its own frozen weights scores at once, ahead of the student's "
            "micro-batches. Default: with each of them."
        },
    )
    teacher_offload: str | None = field(
        default=None,
        metadata={"help": "cpu: a teacher with its own frozen weights lies in CPU memory except while it scores."},
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
        default=None,
        metadata={"help": "One text for all rows in place of a column: a system prompt, a constitution."},
    )
    privileged_context_file: str | None = field(
        default=None,
        metadata={"help": "The same from a file: text, or a .json list of chat messages for few_shot."},
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
            "help": "Probability outside the support: renormalize both models on it; bucket = one more category; drop."
        },
    )
    stop_gradient: bool = field(
        default=True,
        metadata={"help": "Hold the log-ratio of the reverse KL constant (eq. 12): the unbiased TopK gradient."},
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
    num_loss_tokens_to_skip: int = field(
        default=0, metadata={"help": "First completion tokens left out of the distillation loss."}
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

    def __post_init__(self):
        if self.num_generations == 1:
            self.num_generations = _SingleGeneration(1)
        super().__post_init__()
        self.num_generations = int(self.num_generations)
        self._check_choices()
        self._check_loss()
        if self.privileged_context is not None and self.privileged_context_file is not None:
            raise ValueError(
                "privileged_context and privileged_context_file are both set. Give the shared text in one of them."
            )

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

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}.")
        for name in ("num_loss_tokens_to_skip", "distillation_coef", "distillation_coef_end", "policy_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}.")
        if not 0.0 <= self.divergence_beta <= 1.0:
            raise ValueError(
                f"divergence_beta must lie in [0, 1], got {self.divergence_beta}. 0 is the forward KL, 1 the reverse."
            )
        if self.loss_temperature is not None and self.loss_temperature <= 0:
            raise ValueError(
                f"loss_temperature must be > 0, got {self.loss_temperature}. Leave it unset for that of sampling."
            )
        for name in ("max_teacher_prompt_length", "loss_memory_mib", "teacher_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}. Leave it unset for the default.")

    def _check_loss(self) -> None:
        if self.loss_top_k < 1:
            raise ValueError(
                f"loss_top_k must be >= 1, got {self.loss_top_k}. Use loss_support='full' for the whole vocabulary."
            )
        if self.loss_support not in TOP_K_SUPPORTS:
            return
        # The union of two single tokens can hold two ids, so it alone has a gradient there.
        if self.loss_top_k == 1 and self.loss_tail == "renormalize" and self.loss_support != "union":
            raise ValueError(
                "loss_top_k=1 with loss_tail='renormalize' is identically zero: one token always has the whole "
                "renormalised mass. Use loss_support='sampled', loss_tail='drop', or a larger loss_top_k."
            )
        reverse = self.divergence in ("reverse_kl", "mixed") or (self.divergence, self.divergence_beta) == ("jsd", 1.0)
        if reverse and self.loss_tail == "drop" and not self.stop_gradient:
            warnings.warn(
                "stop_gradient=False with loss_tail='drop' is the biased TopK reverse KL: its gradient keeps a '+1' "
                "on the support, so it is stationary at p = q/e and unlearns a perfect student (arXiv 2605.11182, "
                "mechanism 2). Set stop_gradient=True or loss_tail='renormalize' unless you study the bias.",
                UserWarning,
                stacklevel=4,
            )


@dataclass
class OPSDConfig(OPDConfig):
    r"""Configuration of [`OPSDTrainer`]: the teacher is the student itself, reading the privileged context.

    Raises:
        ValueError: a separate teacher is given, or an unknown choice or impossible combination.
    """

    teacher_model_kind: str = field(
        default="base",
        metadata={
            "help": "Whose weights score: base = the student at step 0 (LoRA: adapters off, no second copy), live = "
            "the student as it is, ema = a moving average of it."
        },
    )
    teacher_update_rate: float = field(
        default=0.05,
        metadata={"help": "Share of the student in each update of an ema teacher; 1.0 copies the student."},
    )
    teacher_sync_steps: int = field(
        default=1, metadata={"help": "Optimizer steps between two updates of an ema teacher."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.teacher_model_kind not in TEACHER_KINDS:
            raise ValueError(
                f"teacher_model_kind must be one of {', '.join(TEACHER_KINDS)}, got {self.teacher_model_kind!r}."
            )
        if self.teacher_model_name_or_path is not None:
            raise ValueError(
                f"teacher_model_name_or_path={self.teacher_model_name_or_path!r} with teacher_model_kind="
                f"{self.teacher_model_kind!r}: in OPSD the teacher is the student itself. Remove the path, or use "
                "OPDTrainer (`opd-trl opd`), which takes a separate teacher and a privileged context too."
            )
        if not 0.0 < self.teacher_update_rate <= 1.0:
            raise ValueError(
                f"teacher_update_rate must lie in (0, 1], got {self.teacher_update_rate}. "
                "Use teacher_model_kind='base' for a teacher that never changes."
            )
        if self.teacher_sync_steps < 1:
            raise ValueError(f"teacher_sync_steps must be >= 1, got {self.teacher_sync_steps}.")
