"""The trainers that are compared: ours beside TRL's, with the settings that make their work the same.

OPD: full fine-tuning with a separate teacher. GRPO: the same with a reward, groups of two and, in ours, a teacher.
OPSD: LoRA, the adapters off as teacher, and a privileged context.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


# The first of each pair is TRL's.
PAIRS = {
    "opd": ("DistillationTrainer", "OPDTrainer, full vocabulary", "OPDTrainer (default)"),
    "opsd": ("SDFTTrainer, topk_logits", "OPSDTrainer (default)"),
    "grpo": ("GRPOTrainer, reward", "OPDTrainer, reward and teacher"),
}
QUESTIONS = ("What is a comet?", "Why is the sea salty?", "Who wrote Hamlet?", "How do bees find their way home?")
CONTEXT = "Answer in one short, friendly sentence that a child of six can understand, and name one example."


@dataclass(frozen=True)
class Setup:
    """What the trainers of a comparison share.

    Attributes:
        student, teacher: paths of models.
        output: folder of the trainers.
        prompts: of a micro-batch; a step has `accumulation` of them, whose completions are generated together.
        completion_tokens: the longest completion; `same_length` forbids shorter ones.
        steps: optimizer steps.
        device: `cpu` or `cuda`.
        dtype: of the weights; with bfloat16 on CUDA also of autocast.
        preface: stands before every question.
        context: what only the teacher of OPSD reads.
    """

    student: str
    teacher: str
    output: Path
    prompts: int
    completion_tokens: int
    steps: int
    device: str = "cpu"
    dtype: str = "float32"
    accumulation: int = 1
    same_length: bool = True
    gradient_checkpointing: bool = True
    preface: str = ""
    context: str = CONTEXT

    @property
    def options(self) -> dict[str, Any]:
        """Fields that the configurations of all trainers have."""
        return {
            "output_dir": str(self.output),
            "max_steps": self.steps,
            "per_device_train_batch_size": self.prompts,
            "gradient_accumulation_steps": self.accumulation,
            "max_completion_length": self.completion_tokens,
            "generation_kwargs": {"min_new_tokens": self.completion_tokens} if self.same_length else None,
            "gradient_checkpointing": self.gradient_checkpointing,
            "learning_rate": 1e-6,
            "use_cpu": self.device == "cpu",
            "bf16": self.device == "cuda" and self.dtype == "bfloat16",
            "model_init_kwargs": {"dtype": self.dtype},
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": 0,
        }

    def dataset(self, **columns: str):
        """Rows for every step; a further column has one text for all of them."""
        from datasets import Dataset

        count = self.steps * self.prompts * self.accumulation
        questions = [self.preface + QUESTIONS[i % len(QUESTIONS)] for i in range(count)]
        prompts = [[{"role": "user", "content": question}] for question in questions]
        return Dataset.from_dict({"prompt": prompts} | {name: [text] * count for name, text in columns.items()})


def build_trainer(name: str, setup: Setup):
    """The trainer of a row of `PAIRS`."""
    if name in PAIRS["grpo"]:
        return build_rewarded(name, setup)
    teacher = {"teacher_model_init_kwargs": {"dtype": setup.dtype}}
    if name == "DistillationTrainer":
        from trl import DistillationConfig, DistillationTrainer

        config = DistillationConfig(**setup.options, **teacher, beta=1.0)
        models = {"model": setup.student, "teacher_model": setup.teacher}
        return DistillationTrainer(**models, args=config, train_dataset=setup.dataset())
    if name.startswith("OPDTrainer"):
        from opd_trl import OPDConfig, OPDTrainer

        support = {"loss_support": "full"} if "full" in name else {}
        config = OPDConfig(**setup.options, **teacher, teacher_model_name_or_path=setup.teacher, **support)
        return OPDTrainer(model=setup.student, args=config, train_dataset=setup.dataset())
    dataset = setup.dataset(privileged_context=setup.context)
    if name.startswith("SDFTTrainer"):
        from trl.experimental.sdft import SDFTConfig, SDFTTrainer

        config = SDFTConfig(
            **setup.options,
            teacher_model_kind="base",
            max_prompt_length=None,  # it would cut the context away
            teacher_prompt_template="{privileged_context}\n\n{prompt}",
            num_generations=1,
            distillation_mode="topk_logits",
            distillation_topk=20,
            distillation_alpha=1.0,
        )
        return SDFTTrainer(model=setup.student, args=config, train_dataset=dataset, peft_config=lora())
    from opd_trl import OPSDConfig, OPSDTrainer

    template = "{{ context }}\n\n{{ prompt }}"  # as the other: what rows share stands first
    config = OPSDConfig(**setup.options, privileged_builder="hint", privileged_template=template)
    return OPSDTrainer(model=setup.student, args=config, train_dataset=dataset, peft_config=lora())


def build_rewarded(name: str, setup: Setup):
    """A trainer with a reward, for two completions of each prompt."""
    common = {"model": setup.student, "reward_funcs": different_tokens, "train_dataset": setup.dataset()}
    if name.startswith("GRPOTrainer"):
        from trl import GRPOConfig, GRPOTrainer

        return GRPOTrainer(**common, args=GRPOConfig(**setup.options, num_generations=2))
    from opd_trl import OPDConfig, OPDTrainer

    teacher = {"teacher_model_init_kwargs": {"dtype": setup.dtype}, "teacher_model_name_or_path": setup.teacher}
    return OPDTrainer(**common, args=OPDConfig(**setup.options, **teacher, num_generations=2))


def different_tokens(completion_ids: list[list[int]], **columns) -> list[float]:
    """A reward: the share of a completion's tokens that are not there twice."""
    return [len(set(ids)) / max(1, len(ids)) for ids in completion_ids]


def lora():
    """The adapter of OPSD and SDFT."""
    from peft import LoraConfig

    return LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
