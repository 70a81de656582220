"""OPSDTrainer: the student teaches itself, reading a privileged context that it will not see."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..models.loading import copy_student
from ..teachers import Teacher
from .config.opsd_config import OPSDConfig
from .opd_trainer import OPDTrainer
from .placement import own_teacher
from .resume import TEACHER_FOLDER
from .teacher_guard import TeacherGuard


class UpdateTeacher(TrainerCallback):
    """Move an `ema` teacher every `teacher_sync_steps` optimizer steps; the trainer's step counter survives resume."""

    def __init__(self, trainer: "OPSDTrainer"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % args.teacher_sync_steps == 0:
            self.trainer.teacher.update(self.trainer.accelerator.unwrap_model(model))


class OPSDTrainer(OPDTrainer):
    r"""On-policy self-distillation: teacher(y | x, I) is the student's own model with the privileged context I.

    The student answers the bare prompt; the teacher scores those tokens after `privileged_builder(prompt, context)`.
    With `teacher_model_kind="base"` and a fresh LoRA student the teacher is the same module with its adapters off: no
    second copy of any weight. Everything else is [`OPDTrainer`].

    It can internalise a rule that all contexts share (a system prompt, a persona, a format). It cannot learn what
    differs per row, such as the answer to each question: see arXiv 2605.11182, mechanism 3.

    Args:
        model, reward_funcs, train_dataset, eval_dataset, processing_class, kwargs: as in [`OPDTrainer`].
        args: an [`OPSDConfig`].

    Raises:
        ValueError: no privileged context, a separate teacher, one that is not the student at step 0, or what
            OPDTrainer refuses.

    Example:
        ```python
        trainer = OPSDTrainer(
            model="Qwen/Qwen3-1.7B",
            args=OPSDConfig(output_dir="out", privileged_context="Answer in one sentence."),
            train_dataset=dataset,  # a column "prompt"
            peft_config=LoraConfig(task_type="CAUSAL_LM"),
        )
        trainer.train()
        ```
    """

    _tag_names = ["trl", "opsd"]  # noqa: RUF012 - TRL's own attribute
    _name = "OPSD"
    config_class = OPSDConfig
    requires_privileged_context = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(TeacherGuard(self))
        if self.teacher.moves:
            self.add_callback(UpdateTeacher(self))

    def _find_teachers(self, model, teacher_model, args, processing_class, teacher_processing_class) -> dict[str, Any]:
        if teacher_model is not None or teacher_processing_class is not None:
            raise ValueError(
                f"teacher_model together with teacher_model_kind={args.teacher_model_kind!r}: in OPSD the teacher is "
                "the student itself. Use OPDTrainer for a separate teacher; it takes a privileged context too."
            )
        return {"": None}

    def _copy_student(self, model, args, kwargs):
        if args.teacher_model_kind == "live":
            return super()._copy_student(model, args, kwargs)
        return copy_student(model, kwargs)

    def _build_teachers(self, found: dict[str, Any], initial_copy) -> dict[str, Teacher]:
        kind, rate = self.args.teacher_model_kind, self.args.teacher_update_rate
        return {"": own_teacher(self, kind=kind, rate=rate, initial_copy=initial_copy)}

    # Checkpoints

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        self.teacher.save(self, Path(output_dir) / TEACHER_FOLDER)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.teacher.load(self, Path(checkpoint) / TEACHER_FOLDER)
