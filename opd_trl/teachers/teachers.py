"""Who scores the completion: another model, the initial student, the live student, a moving average of it."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.sharding import read_whole, whole, write_whole


@contextmanager
def scoring_mode(module: nn.Module) -> Iterator[nn.Module]:
    """Put `module` in evaluation mode without gradients, and give every submodule its own mode back.

    Evaluation mode switches dropout off and, in transformers, activation checkpointing too. Flags are restored one by
    one, since the module may be the student in the middle of training, with parts that its user froze.
    """
    training = [(part, part.training) for part in module.modules()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        for part, flag in training:
            part.training = flag
        for parameter, flag in requires_grad:
            parameter.requires_grad_(flag)


TEACHER_ADAPTER = "teacher"


class Teacher:
    """The student as it is (`live`), and the interface of all other teachers.

    `scoring(student)` gives the module to run; `update(student)` moves the teacher towards the student. `student` is
    the module that the engine wrapped (DDP, DeepSpeed, FSDP), since only calling it keeps sharded weights right.
    """

    #: The teacher's own model, which the trainer prepares with the engine; None where it is the student's module.
    model: nn.Module | None = None
    #: Does `update` change the teacher, so that a checkpoint must hold it?
    moves: bool = False

    @contextmanager
    def scoring(self, student: nn.Module) -> Iterator[nn.Module]:
        """Yield the module that scores, in the state of `scoring_mode`."""
        with scoring_mode(student) as module:
            yield module

    def update(self, student: nn.Module) -> None:
        """Move towards `student` (unwrapped). A teacher that never moves does nothing."""


class ModelTeacher(Teacher):
    """A model of its own: another model, the student at step 0, or a moving average of the student.

    Args:
        model: the teacher; frozen here.
        update_rate: share of the student in each update; 0 never moves.
    """

    def __init__(self, model: nn.Module, *, update_rate: float = 0.0):
        self.model = model.requires_grad_(False).eval()
        self.update_rate = update_rate
        self.moves = update_rate > 0
        self.works_on: torch.device | None = None

    def rest_on_cpu(self, works_on: torch.device) -> None:
        """Keep the body of the model on the CPU except while it scores; the head stays where the loss reads it."""
        self.works_on = works_on
        self.model.get_output_embeddings().to(works_on)
        move_body(self.model, torch.device("cpu"))

    @contextmanager
    def scoring(self, student: nn.Module) -> Iterator[nn.Module]:
        if self.works_on is not None:
            move_body(self.model, self.works_on)
        try:
            with scoring_mode(self.model) as module:
                yield module
        finally:
            if self.works_on is not None:
                move_body(self.model, torch.device("cpu"))

    def update(self, student: nn.Module) -> None:
        if self.moves:
            move_towards(zip(self.model.parameters(), student.parameters(), strict=True), self.update_rate)


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

    def load(self, state_dict: dict[str, Tensor]) -> None:
        """Take up saved weights, under the names that PEFT saves an adapter with. All ranks must call it."""
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


def body(model: nn.Module) -> list[Tensor]:
    """Every parameter and buffer of a model but its LM head (and the embeddings tied to it)."""
    head = {id(x) for x in model.get_output_embeddings().parameters()}
    return [x for x in (*model.parameters(), *model.buffers()) if id(x) not in head]


def move_body(model: nn.Module, device: torch.device) -> None:
    """Move the `body` of a model."""
    for tensor in body(model):
        tensor.data = tensor.data.to(device)


@torch.no_grad()
def move_towards(pairs: Iterable[tuple[Tensor, Tensor]], rate: float) -> None:
    """teacher <- (1 - rate) teacher + rate student, in place; a rate of 1 copies exactly."""
    for teacher, student in pairs:
        with whole(student), whole(teacher, write=True):
            teacher.lerp_(student.to(teacher.dtype), rate)


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
        return Teacher()
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
