"""Data with images: can the student read them, will the teacher be shown the same ones? And what nobody reads."""

from typing import Any

from transformers import ProcessorMixin

from ..addresses import is_url
from ..data.row_checks import IMAGE_COLUMNS
from .input_checks import column_names, model_config
from .opd_config import OPDConfig


#: Columns and parts that GRPOTrainer does not bring to the model that is trained.
UNREAD = ("video", "videos", "audio", "audios")


def has_images(dataset) -> bool:
    """Does a data set bring images, in a column or in the parts of its first prompt?"""
    return any(name in IMAGE_COLUMNS for name in media(dataset))


def media(dataset) -> list[str]:
    """The columns of a data set, and the types of the parts of its first prompt that are not text."""
    columns = column_names(dataset) or []
    first = next(iter(dataset), {}) if "prompt" in columns else {}
    return [*columns, *other_parts(first.get("prompt", ""))]


def check_images(args: OPDConfig, datasets: dict[str, Any], processing_class, teachers: dict[str, Any]) -> None:
    """Refuse images that the student cannot read or that a teacher would not see, and what no model would be shown.

    Args:
        args: of the trainer.
        datasets: by name.
        processing_class: of the student.
        teachers: by name, from `named_teachers`; None where the student teaches itself.

    Raises:
        ValueError: with the remedy.
    """
    if isinstance(processing_class, ProcessorMixin):
        check_unread(datasets)
    name = next((name for name, dataset in datasets.items() if has_images(dataset)), None)
    if name is None:
        return
    if not isinstance(processing_class, ProcessorMixin):
        raise ValueError(
            f"the {name} set has images, and the student's processing_class is a {type(processing_class).__name__}, "
            "which reads text alone. Give a vision-language model with its processor as processing_class, or remove "
            f"the images ({' / '.join(IMAGE_COLUMNS)})."
        )
    cut = {
        "several teachers": list(teachers) != [""],
        "a served teacher": any(map(is_url, teachers.values())),
        "teacher_batch_size or teacher_offload": args.teacher_rows_ahead is not None,
        "loss_extrapolation": args.loss_extrapolation != 1.0,
    }
    for what in (what for what, wanted in cut.items() if wanted):
        raise ValueError(
            f"the {name} set has images, and {what} would need them cut by rows, which is not possible. Use one "
            "teacher in this process that scores the student's micro-batches, and no loss_extrapolation."
        )
    for teacher in teachers.values():
        if teacher is None:
            continue
        config = model_config(teacher, trust_remote_code=args.trust_remote_code, revision=args.teacher_model_revision)
        if config.get_text_config() is config:
            raise ValueError(
                f"the {name} set has images, and the teacher is a {config.model_type} model, which reads text alone: "
                "it would score the answers without the pictures. Choose a vision-language teacher with the student's "
                "image processing."
            )


def check_unread(datasets: dict[str, Any]) -> None:
    """Raise ValueError for sound and video, which are generated from and then left out of the training forward."""
    for name, dataset in datasets.items():
        for found in (x for x in media(dataset) if x in UNREAD):
            raise ValueError(
                f"the {name} set has {found!r}, and GRPOTrainer brings images alone to the model that is trained: "
                f"student and teacher would be scored without it. Remove {found!r}, or give single pictures of it as "
                "images."
            )


def other_parts(prompt: Any) -> list[str]:
    """The types of the parts of a prompt that are not text.

    >>> other_parts([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}])
    ['image']
    """
    turns = prompt if isinstance(prompt, list) else []
    parts = (part for turn in turns if isinstance(turn.get("content"), list) for part in turn["content"])
    return [part["type"] for part in parts if part["type"] != "text"]
