"""Trainers on the tiny model, with settings that a test can override by name."""

from peft import LoraConfig

from opd_trl import OPDConfig, OPDTrainer, OPSDConfig, OPSDTrainer
from tests import tiny


def settings(tmp_path, **options) -> dict:
    return {
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "max_completion_length": 8,
        "max_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "loss_top_k": 5,
    } | options


def opd_trainer(tmp_path, student_path, teacher, *, dataset=None, trainer_options=None, **options) -> OPDTrainer:
    return OPDTrainer(
        model=student_path,
        teacher_model=teacher,
        args=OPDConfig(**settings(tmp_path, **options)),
        train_dataset=tiny.questions() if dataset is None else dataset,
        **(trainer_options or {}),
    )


def opsd_trainer(tmp_path, student, *, dataset=None, trainer_options=None, lora=True, **options) -> OPSDTrainer:
    if dataset is None:
        dataset = tiny.questions(privileged_context="Answer with b.")
    trainer_options = dict(trainer_options or {})
    if lora:
        trainer_options.setdefault("peft_config", lora_config())
    return OPSDTrainer(
        model=student,
        args=OPSDConfig(**settings(tmp_path, **options)),
        train_dataset=dataset,
        **trainer_options,
    )


def lora_config(**options) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options)


def fixed_batch(trainer, rows=None):
    """One generated batch (prompts, completions, masks, teacher prompts) as the trainer makes it."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    rows = rows or [trainer.train_dataset[i] for i in range(trainer.args.generation_batch_size)]
    return trainer._generate_and_score_completions(rows)
