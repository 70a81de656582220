"""Teachers that are made of the student: as it is, with its adapters off, with a second adapter, or a copy."""

import copy
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..losses.head import Head
from ..models.sharding import is_sharded, move_towards, read_whole, whole, write_whole
from .base import Host, Teacher, scoring_mode
from .model_teacher import ModelTeacher


TEACHER_ADAPTER = "teacher"


class LiveTeacher(Teacher):
    """The student as it is at each step (`live`)."""

    is_frozen = False

    @contextmanager
    def scoring(self, student: nn.Module) -> Iterator[nn.Module]:
        with scoring_mode(student) as module:
            yield module


class BaseSharingTeacher(Teacher):
    """A teacher that scores with the base weights of a student with an adapter.

    What is trained beside the adapter (LoRA `bias`, norms that the user unfroze) would move this teacher too, so it
    keeps a copy of those weights from step 0 and scores with that.

    Args:
        peft_model: the student.
    """

    def __init__(self, peft_model: nn.Module):
        self.peft_model = peft_model
        self.at_start = [(x, x.detach().clone()) for x in trained_beside(peft_model).values()]
        if self.at_start:  # PEFT says at every scoring that biases move with the student
            warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")

    def prepare(self, host: Host) -> None:
        super().prepare(host)
        if self.at_start and is_sharded(host):
            raise ValueError(
                f"{first_of(trained_beside(self.peft_model))} is trained beside the adapter, and this engine shards "
                "it, so the teacher cannot keep a copy from step 0. Train the adapter alone (LoRA bias='none', "
                "everything else frozen), or use ZeRO-2 or DDP."
            )

    @contextmanager
    def scoring(self, student: nn.Module) -> Iterator[nn.Module]:
        with scoring_mode(student) as module, self._as_at_start(), self._under_its_adapter():
            yield module

    def _under_its_adapter(self) -> AbstractContextManager:
        """Context in which the student's adapter is replaced by the teacher's, or by none."""
        raise NotImplementedError

    @contextmanager
    def _as_at_start(self) -> Iterator[None]:
        """Context in which weights trained beside the adapter have their values of step 0."""
        moved = [parameter.data for parameter, _ in self.at_start]
        for parameter, value in self.at_start:
            parameter.data = value.to(parameter)
        try:
            yield
        finally:
            for (parameter, _), value in zip(self.at_start, moved, strict=True):
                parameter.data = value

    def _forward(self, host: Host, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Head]:
        hidden_states, head = super()._forward(host, module, batch)
        # The loss reads the head once the student has its weights back.
        return hidden_states, head.detach() if self.at_start else head


class AdaptersOffTeacher(BaseSharingTeacher):
    """The base of a LoRA student: its adapters switched off. No second copy of any weight of the base."""

    def _under_its_adapter(self) -> AbstractContextManager:
        return self.peft_model.disable_adapter()


class AdapterTeacher(BaseSharingTeacher):
    """A frozen second adapter on the student's base weights: a copy at step 0, or its moving average.

    Args:
        peft_model: the student; gets a second adapter, equal to the active one and never trained.
        update_rate: share of the student in each update; 0 never moves.
        adapter: name of the second adapter.

    Raises:
        ValueError: it moves, and something is trained beside the adapter.
    """

    def __init__(self, peft_model: nn.Module, *, update_rate: float = 0.0, adapter: str = TEACHER_ADAPTER):
        super().__init__(peft_model)
        self.student_adapter, self.adapter = peft_model.active_adapter, adapter
        self.update_rate = update_rate
        self.moves = update_rate > 0
        self.is_frozen = not self.moves
        if self.moves:
            check_trained_beside(peft_model)
        if adapter not in peft_model.peft_config:
            add_copy(peft_model, self.student_adapter, adapter)
        for teacher, student in self._pairs():
            with whole(student):
                write_whole(teacher, student.data)
            teacher.requires_grad_(False)

    def _pairs(self) -> Iterable[tuple[Tensor, Tensor]]:
        student, teacher = f".{self.student_adapter}", f".{self.adapter}"
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
            key = name.replace(f".{self.adapter}", "")
            if key != name:
                write_whole(parameter, state_dict[key])

    @contextmanager
    def _under_its_adapter(self) -> Iterator[None]:
        self.peft_model.set_adapter(self.adapter, inference_mode=True)
        try:
            yield
        finally:
            self.peft_model.set_adapter(self.student_adapter)

    def update(self, student: nn.Module) -> None:
        if self.moves:
            move_towards(self._pairs(), self.update_rate)


def self_teacher(
    student: nn.Module,
    *,
    kind: str,
    update_rate: float,
    initial_copy: nn.Module | None,
    adapter: str = TEACHER_ADAPTER,
) -> Teacher:
    """Build the teacher of a self-distillation.

    Args:
        student: the unwrapped student, a `PeftModel` or a plain model.
        kind: `"base"`, `"live"` or `"ema"`.
        update_rate: of `ema`.
        initial_copy: for a full fine-tuning `base` or `ema`: a copy of the student at step 0.
        adapter: name of the second adapter, where one is needed.

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
    return AdapterTeacher(student, update_rate=rate, adapter=adapter)


def adapter_changes_nothing(peft_model: nn.Module) -> bool:
    """Do base and student agree: are all B matrices of a LoRA zero, and modules to save as the base has them?"""
    name = peft_model.active_adapter
    parameters = dict(peft_model.named_parameters(remove_duplicate=False))
    outputs = [x for key, x in parameters.items() if re.search(rf"lora_(embedding_)?B\.{re.escape(name)}\b", key)]
    saved = [
        (x, parameters[key.replace(f".modules_to_save.{name}.", ".original_module.")])
        for key, x in parameters.items()
        if f".modules_to_save.{name}." in key
    ]
    return (
        bool(outputs)
        and not any(read_whole(x).any() for x in outputs)
        and all(torch.equal(read_whole(x), read_whole(original)) for x, original in saved)
    )


def add_copy(peft_model: nn.Module, source: str, name: str) -> None:
    """Add an adapter shaped like another one that is never trained, and leave every other weight as it is.

    PiSSA, OLoRA, CorDA and LoftQ rewrite the base weights whenever an adapter is added, which the first one has done
    already; and PEFT 0.19 freezes the student as such an adapter is added.
    """
    config = copy.deepcopy(peft_model.peft_config[source])
    config.inference_mode = True
    for field, value in {"init_lora_weights": True, "bias": "none"}.items():
        if hasattr(config, field):
            setattr(config, field, value)
    trained = [(x, x.requires_grad) for x in peft_model.parameters()]
    peft_model.add_adapter(name, config)
    for parameter, flag in trained:
        parameter.requires_grad_(flag)


def trained_beside(peft_model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters that belong to no adapter: switching adapters leaves them as they are."""
    adapters = set(peft_model.peft_config)
    return {
        name: x for name, x in peft_model.named_parameters() if x.requires_grad and not adapters & {*name.split(".")}
    }


def check_trained_beside(peft_model: nn.Module) -> None:
    """Raise ValueError where a moving average of the adapter alone would leave out something that is trained."""
    if beside := trained_beside(peft_model):
        raise ValueError(
            f"{first_of(beside)} is trained beside the adapter, and teacher_model_kind='ema' averages the adapter "
            "alone. Train the adapter alone (LoRA bias='none', everything else frozen), or set "
            "teacher_model_kind='base', which keeps a copy of such weights."
        )


def first_of(parameters: dict[str, Tensor]) -> str:
    """The first name, and how many more there are."""
    return next(iter(parameters)) + (f" (and {len(parameters) - 1} more)" if len(parameters) > 1 else "")
