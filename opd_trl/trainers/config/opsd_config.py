"""Configuration of OPSDTrainer: whose weights teach, and how they move."""

from dataclasses import dataclass, field

from ...given import tells_what_is_given
from .config_checks import SEPARATE_TEACHERS, check_choice
from .opd_config import OPDConfig
from .published_methods import FIELDS


TEACHER_KINDS = ("base", "live", "ema")


@tells_what_is_given(*FIELDS)
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
        check_choice("teacher_model_kind", self.teacher_model_kind, TEACHER_KINDS)
        for name in (*SEPARATE_TEACHERS, "teacher_server_models", "teacher_mix"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} with teacher_model_kind={self.teacher_model_kind!r}: in OPSD the "
                    "teacher is the student itself. Remove it, or use OPDTrainer (`opd-trl opd`), which takes a "
                    "separate teacher and a privileged context too."
                )
        if self.teacher_vocabulary == "text":
            raise ValueError(
                "teacher_vocabulary='text' in OPSD: the teacher is the student itself and has its tokenizer. Drop it."
            )
        if not 0.0 < self.teacher_update_rate <= 1.0:
            raise ValueError(
                f"teacher_update_rate must lie in (0, 1], got {self.teacher_update_rate}. "
                "Use teacher_model_kind='base' for a teacher that never changes."
            )
        if self.teacher_sync_steps < 1:
            raise ValueError(f"teacher_sync_steps must be >= 1, got {self.teacher_sync_steps}.")
