"""What a vision-language model reads beside token ids, in batches that are cut and joined by rows."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid


# Batch entries that a vision-language backbone takes besides ids and mask.
MULTIMODAL_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "pixel_attention_mask",
    "spatial_shapes",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
# Those of them that have an entry for each token.
PER_TOKEN_KEYS = ("token_type_ids", "mm_token_type_ids")
# How many images and tiles each row has, by which TRL cuts the others.
COUNTS = ("num_images", "num_tiles")
#: Batch entry: for each row what its teacher prompt has beside ids, as the processor makes it; tensors by name.
TEACHER_IMAGES = "teacher_images"


class ReadPrompt(NamedTuple):
    """A prompt as a model reads it.

    Attributes:
        ids: of its tokens.
        images: what else a processor makes of it: `(1, P)` for each token, `(n, ...)` for its images. Empty: text.
    """

    ids: list[int]
    images: Mapping[str, Tensor] = MappingProxyType({})


def multimodal_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The entries of a batch that a vision-language backbone takes; none where no row has an image."""
    pixels = batch.get("pixel_values")
    if pixels is None or pixels.numel() == 0:
        return {}
    return {key: batch[key] for key in MULTIMODAL_KEYS if key in batch}


def teacher_multimodal_inputs(batch: dict[str, Any]) -> dict[str, Tensor]:
    """The same for the teacher's own prompts."""
    width, length = batch["teacher_prompt_ids"].size(1), batch["completion_ids"].size(1)
    return joined_images(batch.get(TEACHER_IMAGES, ()), width, length)


def has_images(batch: dict[str, Any]) -> bool:
    """Does student or teacher see an image in a row of a batch?"""
    return bool(multimodal_inputs(batch)) or any("pixel_values" in row for row in batch.get(TEACHER_IMAGES, ()))


def joined_images(rows: Sequence[Mapping[str, Tensor]], width: int, length: int) -> dict[str, Tensor]:
    """What some rows have beside ids as one forward takes it; nothing where none has an image.

    Args:
        rows: `ReadPrompt.images` of each.
        width: P of their prompts, which are padded at the left.
        length: T of the completions behind them, which are text.

    Example:
        >>> types, pixels = torch.tensor([[1, 0]]), torch.zeros(1, 3)
        >>> found = joined_images([{"token_type_ids": types, "pixel_values": pixels}, {}], width=3, length=2)
        >>> found["token_type_ids"].tolist(), found["pixel_values"].shape
        ([[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], torch.Size([1, 3]))
    """
    names = dict.fromkeys(name for row in rows for name in row)
    if "pixel_values" not in names:
        return {}
    found = {}
    for name in names:
        if name in PER_TOKEN_KEYS:
            like = next(row[name] for row in rows if name in row)
            every = [row.get(name, like[:, :0]) for row in rows]
            found[name] = torch.cat([pad(x, (width - x.size(1), length)) for x in every])
        else:
            found[name] = concatenated([row[name] for row in rows if name in row])
    return found


def concatenated(values: list[Tensor]) -> Tensor:
    """Tensors one behind the other, each padded with zeros where another one is larger.

    Processors pad so too: images in fewer tiles, rows of fewer images.
    """
    shape = [max(sizes) for sizes in zip(*(x.shape[1:] for x in values), strict=True)]
    return torch.cat(
        [pad(x, [n for a, b in zip(shape[::-1], x.shape[:0:-1], strict=True) for n in (0, a - b)]) for x in values]
    )


def taken(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """These rows `(b,)` of a batch, with the images that belong to them.

    Entries have a value for each row, or one without a dimension for all.
    """
    split = split_pixel_values_by_grid(batch)  # images in lists, by rows
    return unsplit_pixel_values_by_grid({name: picked(value, rows) for name, value in split.items()})


def picked(value: Any, rows: Tensor) -> Any:
    """These rows of an entry."""
    if isinstance(value, list):
        return [value[i] for i in rows.tolist()]
    return value[rows] if isinstance(value, Tensor) and value.ndim else value
