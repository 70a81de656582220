"""The images of rows: as the trainer reads them, and refused where a model would not see them, or otherwise."""

import json
from collections.abc import Sequence
from typing import Any

from accelerate.logging import get_logger
from datasets import Image
from transformers import AutoImageProcessor, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from ..addresses import is_url
from ..data.files import Row
from ..data.row_checks import Checked, RowError
from ..data.row_images import image_column, images_in, kinds_in, outline_part, parts, tidy, with_parts
from ..models.sharding import is_sharded
from ..privileged import Prompt
from .config.opd_config import OPDConfig
from .input_checks import model_config


logger = get_logger(__name__)

#: What decides, in a configuration, how many tokens an image has and which: of the model, of its vision tower.
OF_MODEL = (
    "image_token_id",
    "image_token_index",
    "image_seq_length",
    "mm_tokens_per_image",
    "vision_feature_select_strategy",
    "image_grid_pinpoints",
)
OF_TOWER = ("image_size", "patch_size", "spatial_merge_size", "temporal_patch_size")
#: What an image processor's settings say that does not change the pixels.
NAMES = ("image_processor_type", "processor_class", "_processor_class", "return_tensors", "device", "data_format")


def check_images(
    args: OPDConfig,
    sets: Sequence[Checked],
    processing_class,
    student,
    teachers: dict[str, Any],
) -> None:
    """Refuse images that the student cannot read, or that a teacher would not see as the student does.

    Args:
        args: of the trainer.
        sets: the data sets whose rows were looked at.
        processing_class: of the student.
        student: model or path.
        teachers: by name, from `named_teachers`; None where the student teaches itself.

    Raises:
        ValueError: with the remedy.
    """
    name = next((checked.name for checked in sets if True in checked.shown), None)
    if name is None:
        return
    if not isinstance(processing_class, ProcessorMixin):
        raise ValueError(
            f"the {name} set has images, and the student's processing_class is a {type(processing_class).__name__}, "
            "which reads text alone. Give a vision-language model with its processor as processing_class, or remove "
            "the images (image / images)."
        )
    refused = {
        "a served teacher": any(map(is_url, teachers.values())),
        "teacher_vocabulary: text": args.teacher_vocabulary == "text",
    }
    for what in (what for what, wanted in refused.items() if wanted):
        raise ValueError(
            f"the {name} set has images, and {what} reads text alone: it would score the answers without the "
            "pictures. Use a vision-language teacher in this process, of the student's tokenizer."
        )
    models = {f"the teacher{f' {key!r}' * bool(key)}": x for key, x in teachers.items() if x is not None}
    if args.reference_model_name_or_path is not None:
        models["the reference model"] = args.reference_model_name_or_path
    for whose, model in models.items():
        check_reads_alike(name, whose, model, student, processing_class, args)


def check_sharded(trainer) -> None:
    """Refuse rows without images among rows with some where weights are sharded.

    The ranks gather each layer together: one whose rows have no image would never come to the vision tower, and the
    others would wait for it.
    """
    for checked in trainer.row_checks.sets:
        if len(checked.shown) == 2 and is_sharded(trainer):
            raise ValueError(
                f"the {checked.name} set has rows with images and rows without, and this engine shards the model: "
                "ranks without an image would leave out layers on which the others wait. Give every row an image, "
                "filter the others out, or use DDP or ZeRO-2."
            )


def check_reads_alike(name: str, whose: str, model, student, processing_class, args: OPDConfig) -> None:
    """Refuse a model that reads no images, or reads them in other tokens or pixels than the student.

    It is given the student's own: they are made once.
    """
    options = {"trust_remote_code": args.trust_remote_code}
    revision = args.teacher_model_revision if whose.startswith("the teacher") else None
    theirs = model_config(model, revision=revision, **options)
    if theirs.get_text_config() is theirs:
        raise ValueError(
            f"the {name} set has images, and {whose} is a {theirs.model_type} model, which reads text alone: it would "
            "score the answers without the pictures. Choose a vision-language model with the student's image "
            "processing."
        )
    found = differences(image_tokens(model_config(student, **options)), image_tokens(theirs))
    path = model if isinstance(model, str) else getattr(theirs, "_name_or_path", "")
    if path and not found:
        found = other_pixels(processing_class.image_processor, path, revision=revision, **options)
    for field, (mine, other) in found.items():
        raise ValueError(
            f"the {name} set has images, and {whose} reads them otherwise than the student: {field} is {other!r}, the "
            f"student's is {mine!r}. Both are given the same tokens and pixels. Choose a model with the student's "
            "image processing."
        )


def image_tokens(config: Any) -> dict[str, Any]:
    """What a model's configuration says of the tokens of an image."""
    found = {name: getattr(config, name) for name in OF_MODEL if hasattr(config, name)}
    tower = getattr(config, "vision_config", None)
    return found | {f"vision_config.{name}": getattr(tower, name) for name in OF_TOWER if hasattr(tower, name)}


def other_pixels(image_processor: Any, path: str, **options: Any) -> dict[str, tuple[Any, Any]]:
    """In what an image processor and that of a path differ, as far as both say it; `options` are of loading."""
    try:
        loaded = AutoImageProcessor.from_pretrained(path, **options)
    except OSError as error:
        logger.warning(f"{path} has no image processor to compare with the student's, whose pixels it gets: {error}")
        return {}
    mine, other = (json.loads(x.to_json_string()) for x in (image_processor, loaded))
    both = [x for x in mine if x not in NAMES and mine[x] is not None and other.get(x) is not None]
    return differences({x: mine[x] for x in both}, {x: other[x] for x in both})


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> both values, where they differ.

    >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
    {'b': (2, 3)}
    """
    names = [name for name in mine if mine[name] != theirs.get(name)] + [name for name in theirs if name not in mine]
    return {name: (mine.get(name), theirs.get(name)) for name in names if mine.get(name) != theirs.get(name)}


def as_read(rows: Sequence[Row], *contexts: str) -> list[Row]:
    """Rows as the trainer reads them: tidy messages, the images of each prompt decoded in `images`.

    GRPOTrainer leaves out images that stand in the prompt itself where a `rollout_func` answers.

    Args:
        rows: as the data set gives them.
        contexts: columns besides `prompt` that may hold messages; their images stay in them.
    """
    found = []
    for row in rows:
        read = {name: _decoded(tidy(row[name])) for name in ("prompt", *contexts) if name in row}
        found.append(_in_column({**row, **read}))
    if any("images" in row for row in found):
        # TRL looks for messages in any one column of these, and takes images where it finds some.
        found = [{"images": []} | row | _completion_of(row) for row in found]
    return found


def _completion_of(row: Row) -> Row:
    """The completion of a row as messages, where it is a text behind messages."""
    given = row.get("completion")
    return {"completion": [{"role": "assistant", "content": given}]} if isinstance(given, str) else {}


def _in_column(row: Row) -> Row:
    """A row with its images in the column `images`, and places for those that stood in its prompt."""
    own = (turn for turn in row.get("prompt") or () if isinstance(turn, dict) and turn["role"] != "tool")
    if not any("image" in part for part in parts(list(own))):
        return row if image_column(list(row)) is None else {**row, "images": images_in(row)}
    images = []

    def emptied(turn: dict[str, Any]) -> dict[str, Any]:
        if turn["role"] == "tool":
            return turn
        images.extend(part["image"] for part in parts([turn]) if "image" in part)
        return with_parts([turn], outline_part)[0]

    prompt = [emptied(turn) for turn in prepare_multimodal_messages(row["prompt"], images=images_in(row))]
    return {**row, "prompt": prompt, "images": images}


def _decoded(messages: Any) -> Any:
    """Messages whose images are pictures where a table holds the bytes or the path of a file."""
    if not any(isinstance(part.get("image"), dict) for part in parts(messages)):
        return messages
    decoder = Image()

    def decode(part: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(part.get("image"), dict):
            return part
        file = {"bytes": None, "path": None, **part["image"]}
        return {**part, "image": decoder.decode_example(file)}

    return with_parts(messages, decode)


def with_images(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the images of its column in its prompt, as GRPOTrainer puts them there."""
    if not row.get("images"):
        return row
    return {**row, "prompt": prepare_multimodal_messages(row["prompt"], images=row["images"])}


def check_shown(given: list[Prompt], prompts: list[Prompt], counts: list[int] | None, names: list[str]) -> None:
    """Raise RowError where the teacher would not be shown all images that the student has seen.

    Args:
        given, prompts: of student and teacher.
        counts: how many images the student has seen in each row, those that tools gave it too; None where none.
        names: what errors call the rows.
    """
    for place, (mine, theirs, name) in enumerate(zip(given, prompts, names, strict=True)):
        own, shown = kinds_in(mine).count("image"), kinds_in(theirs).count("image")
        if shown < own:
            raise RowError(
                f"the teacher's prompt has {shown} images, the student's has {own}",
                "Let privileged_builder keep the parts of the prompt that are not text.",
                where=name,
            )
        if counts is not None and counts[place] > own:
            raise RowError(
                f"tools gave the student {counts[place] - own} images in its answer, which a teacher with a prompt of "
                "its own would not see",
                "Let the tools answer in text, or let the teacher read the student's own prompt: no privileged "
                "context and no teacher_chat_template_kwargs.",
                where=name,
            )
