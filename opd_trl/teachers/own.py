"""Teachers that are made of the student: as it is, with its adapters off, with a second adapter, or a copy."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from ..models.sharding import move_towards, read_whole, whole, write_whole
from .base import Host, Teacher, scoring_mode
from .model_teacher import ModelTeacher


TEACHER_ADAPTER = "teacher"


class LiveTeacher(Teacher):
    """The student as it is at each step (`live`)."""

    @contextmanager
    def scoring(self, student: nn.Module) -> Iterator[nn.Module]:
        with scoring_mode(student) as module:
            yield module


class AdaptersOffTeacher(Teacher):
    """The base of a LoRA student: its adapters switched off. No second copy of any weight."""

    def __init__(self, peft_model: nn.Module):
        self.peft_model = peft_model

    @contextmanager
    def scoring(self, student: nn.Module) -> Iterator[nn.Module]:
        with scoring_mode(student) as module, self.peft_model.disable_adapter():
            yield module


class AdapterTeacher(Teacher):
    """A frozen second adapter on the student's base weights: a copy at step 0, or its moving average.

    Args:
        peft_model: the student; gets an adapter named `teacher`, equal to the active one and never trained.
        update_rate: share of the student in each update; 0 never moves.
    """

    def __init__(self, peft_model: nn.Module, *, update_rate: float = 0.0):
        self.peft_model = peft_model
        self.student_adapter = peft_model.active_adapter
        self.update_rate = update_rate
        self.moves = update_rate > 0
        if TEACHER_ADAPTER not in peft_model.peft_config:
            peft_model.add_adapter(TEACHER_ADAPTER, copy.deepcopy(peft_model.peft_config[self.student_adapter]))
        for teacher, student in self._pairs():
            with whole(student):
                write_whole(teacher, student.data)
            teacher.requires_grad_(False)

    def _pairs(self) -> Iterable[tuple[Tensor, Tensor]]:
        student, teacher = f".{self.student_adapter}", f".{TEACHER_ADAPTER}"
        parameters = dict(self.peft_model.named_parameters())
        for name, parameter in parameters.items():
            if f"{teacher}." in name or name.endswith(teacher):
                yield parameter, parameters[name.replace(teacher, student)]

    def load(self, host: Host, folder: Path) -> None:
        """Take up the weights that PEFT has saved beside the student's adapter. All ranks must call it."""
        if not self.moves:
            return
        state_dict = load_file(folder / "adapter_model.safetensors")
        for name, parameter in self.peft_model.named_parameters():
            key = name.replace(f".{TEACHER_ADAPTER}", "")
            if key != name:
                write_whole(parameter, state_dict[key])

    @contextmanager
    def scoring(self, student: nn.Module) -> Iterator[nn.Module]:
        with scoring_mode(student) as module:
            self.peft_model.set_adapter(TEACHER_ADAPTER, inference_mode=True)
            try:
                yield module
            finally:
                self.peft_model.set_adapter(self.student_adapter)

    def update(self, student: nn.Module) -> None:
        if self.moves:
            move_towards(self._pairs(), self.update_rate)


def self_teacher(student: nn.Module, *, kind: str, update_rate: float, initial_copy: nn.Module | None) -> Teacher:
    """Build the teacher of a self-distillation.

    Args:
        student: the unwrapped student, a `PeftModel` or a plain model.
        kind: `"base"`, `"live"` or `"ema"`.
        update_rate: of `ema`.
        initial_copy: for a full fine-tuning `base` or `ema`: a copy of the student at step 0.

    Returns:
        the teacher. A LoRA student needs no copy of the model: `base` switches the adapters off where they change
        nothing yet, and otherwise (a trained adapter, or PiSSA-like initialisation) keeps a frozen second adapter.
    """
    if kind == "live":
        return LiveTeacher()
    rate = update_rate if kind == "ema" else 0.0
    if not hasattr(student, "peft_config"):
        return ModelTeacher(initial_copy, update_rate=rate)
    if kind == "base" and adapter_changes_nothing(student):
        return AdaptersOffTeacher(student)
    return AdapterTeacher(student, update_rate=rate)


def adapter_changes_nothing(peft_model: nn.Module) -> bool:
    """Is the active adapter a LoRA whose B matrices are all zero, so that base and student agree exactly?"""
    name = peft_model.active_adapter
    outputs = [
        parameter
        for key, parameter in peft_model.named_parameters()
        if ("lora_B" in key or "lora_embedding_B" in key) and f".{name}" in key
    ]
    return bool(outputs) and not any(read_whole(parameter).any() for parameter in outputs)
