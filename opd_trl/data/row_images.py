"""The images of rows: in a column, or in the parts of messages."""

from collections.abc import Iterator, Sequence
from typing import Any

from .files import Row
from .prompts import RowError


#: Columns that GRPOTrainer reads images from; it takes `images` where there are both.
IMAGE_COLUMNS = ("images", "image")
#: Columns and parts that GRPOTrainer does not bring to the model that is trained.
UNREAD = ("video", "videos", "audio", "audios")


def image_column(columns: Sequence[str] | None) -> str | None:
    """The column with the images of a data set; None where there is none."""
    return next((name for name in IMAGE_COLUMNS if name in (columns or ())), None)


def count_in(row: Row) -> int | None:
    """How many images the column of a row holds; None where it has no such column.

    >>> count_in({"image": None}), count_in({"images": ["a.png", "b.png"]}), count_in({"prompt": "Hi"})
    (0, 2, None)
    """
    column = image_column(list(row))
    return None if column is None else len(images_in(row))


def images_in(row: Row) -> list[Any]:
    """The images that the column of a row holds."""
    if "images" in row:
        return list(row["images"] or [])
    return [] if row.get("image") is None else [row["image"]]


def counts_of(dataset: Any) -> list[int] | None:
    """How many images each row of a data set has in its column, without decoding any.

    None where there is no such column, or where rows are made as they are read.
    """
    column = image_column(getattr(dataset, "column_names", None))
    if column is None or getattr(dataset, "format", {}).get("type", "custom") == "custom":
        return None
    counts: list[int] = []
    for part in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        rows = part.column(column)
        if column == "image":
            counts += rows.is_valid().to_pylist()
        else:  # offsets of lists, None for a missing one
            counts += [size or 0 for chunk in rows.chunks for size in chunk.value_lengths().to_pylist()]
    return list(map(int, counts))


def parts(messages: Any) -> Iterator[dict[str, Any]]:
    """The parts of messages whose content is a list of them; nothing of a text."""
    for turn in messages if isinstance(messages, list) else ():
        if isinstance(turn, dict) and isinstance(turn.get("content"), list):
            yield from (part for part in turn["content"] if isinstance(part, dict))


def kinds_in(messages: Any) -> list[str]:
    """The types of the parts of messages that are not text.

    >>> kinds_in([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}])
    ['image']
    """
    return [part["type"] for part in parts(messages) if part.get("type") != "text" and "type" in part]


def tidy(messages: Any) -> Any:
    """Messages whose parts have no empty keys.

    Tables give every part the keys of all: a text gets an empty `image`, which some chat templates take for an image.

    >>> tidy([{"role": "user", "content": [{"type": "text", "text": "What?", "image": None}]}])
    [{'role': 'user', 'content': [{'type': 'text', 'text': 'What?'}]}]
    """
    return with_parts(messages, lambda part: {key: value for key, value in part.items() if value is not None})


def outline(messages: Any) -> Any:
    """Tidy messages without the images themselves, which no check looks at."""
    return with_parts(tidy(messages), outline_part)


def outline_part(part: dict[str, Any]) -> dict[str, Any]:
    """A part, or the place of an image."""
    return {"type": "image"} if part.get("type") == "image" else part


def check_images_of(prompt: Any, count: int | None) -> None:
    """Refuse a prompt whose places for images are not as many as the images, or that has sound or video.

    Args:
        prompt: tidy.
        count: of the images in the row's column; None where there is no such column.

    Raises:
        RowError: with the remedy.
    """
    check_kinds(prompt, "the prompt")
    if isinstance(prompt, str):
        if count:
            raise RowError(
                f"the row has {count} images, and its prompt is a text, which has no place for them",
                "Give the prompt as messages: [{'role': 'user', 'content': 'What is it?'}].",
            )
        return
    turns = [turn for turn in prompt if turn["role"] != "tool"]
    places = sum(part["type"] == "image" and "image" not in part for part in parts(turns))
    if not count and not places:
        return
    if any(turn["role"] == "user" and isinstance(turn.get("content"), str) for turn in turns):
        # The trainer puts all images before the first such turn.
        expected = 0
        why = "a user's turn is a plain text, before which all images of the row go"
    else:
        expected, why = count or 0, f"the row has {count or 0} images in the column `image` or `images`"
    if places != expected:
        raise RowError(
            f"the prompt has {places} places for images ({{'type': 'image'}}), and {why}",
            "Give one place for each image, or an image of its own to each place: {'type': 'image', 'image': ...}.",
        )


def check_images_of_context(context: Any) -> None:
    """Refuse a place for an image in a privileged context without the image: a column fills the prompt alone."""
    check_kinds(context, "the privileged context")
    if any(part.get("type") == "image" and "image" not in part for part in parts(context)):
        raise RowError(
            "the privileged context has a place for an image without one",
            "Put the image there: {'type': 'image', 'image': ...}. The column `images` fills the prompt alone.",
        )


def check_kinds(messages: Any, whose: str) -> None:
    """Refuse sound and video in parts of messages."""
    for kind in kinds_in(messages):
        if kind in UNREAD:
            raise unread(whose, kind)


def check_columns(columns: Sequence[str] | None, name: str) -> None:
    """Refuse sound and video in columns of a data set."""
    for column in columns or ():
        if column in UNREAD:
            raise unread(f"the {name} set", column)


def unread(where: str, what: str) -> RowError:
    """The error about what the student would generate from, and then be scored without."""
    return RowError(
        f"{where} has {what!r}, and GRPOTrainer brings images alone to the model that is trained: student and teacher "
        "would be scored without it",
        f"Remove {what!r}, or give single pictures of it as images.",
    )


def with_parts(messages: Any, change: Any) -> Any:
    """Messages with each part changed; as they are where none has parts."""
    if next(parts(messages), None) is None:
        return messages
    return [
        {**turn, "content": [change(part) if isinstance(part, dict) else part for part in turn["content"]]}
        if isinstance(turn, dict) and isinstance(turn.get("content"), list)
        else turn
        for turn in messages
    ]
