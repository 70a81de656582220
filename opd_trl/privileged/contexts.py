"""Where the privileged context comes from: one shared text, a file, or a data set column; checked once."""

from pathlib import Path
from typing import Any

from ..foreign import parse_json
from .builders import Context


def read_shared_context(text: str | None, file: str | None) -> Context | None:
    """Return the context shared by all rows, or None where there is none.

    Args:
        text: the context itself.
        file: a path; `.json` holds a list of chat messages, anything else is text.

    Raises:
        ValueError: the file does not exist, or what was given is empty or no list of messages.
    """
    if text is None and file is None:
        return None
    context: Any = text
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise ValueError(f"privileged_context_file={file!r} does not exist (looked in {Path.cwd()}).")
        try:
            context = path.read_text(encoding="utf-8")
            context = parse_json(context) if path.suffix == ".json" else context
        except ValueError as error:
            raise ValueError(
                f"privileged_context_file={file!r} cannot be read: {error}. Expected UTF-8 text, or a .json file with "
                "a list of chat messages."
            ) from error
    if is_empty(context):
        raise ValueError(
            f"{'privileged_context' if file is None else f'privileged_context_file={file!r}'} is empty: the teacher "
            "would see no more than the student. Give it a text, or use a plain OPDTrainer without one."
        )
    if not is_context(context):
        raise ValueError(
            f"privileged_context_file={file!r} must hold a JSON list of messages with role and content, got "
            f"{type(context).__name__}."
        )
    return context


def is_context(value: Any) -> bool:
    """Is `value` text or a list of chat messages?"""
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(x, dict) and {"role", "content"} <= x.keys() for x in value)
    )


def is_empty(value: Any) -> bool:
    """Is a privileged context missing: None, blank text or no messages?"""
    return value is None or (isinstance(value, str) and not value.strip()) or value == []


def check_context(value: Any, *, column: str, row: str) -> Context:
    """Return the value of one row, or raise ValueError naming the row."""
    if is_empty(value):
        raise ValueError(
            f"{column!r} is empty in {row}: the teacher would see no more than the student there. "
            "Fill it, or filter the row out."
        )
    if not is_context(value):
        raise ValueError(
            f"{column!r} must hold text or a list of messages with role and content, got "
            f"{type(value).__name__} in {row}."
        )
    return value


def check_column(column_names: list[str] | None, column: str) -> None:
    """Raise ValueError where the data set has no such column."""
    if column_names is not None and column not in column_names:
        raise ValueError(
            f"the data set has no column {column!r}, it has {', '.join(map(repr, column_names))}. Add one, name yours "
            "with privileged_context_column, or give one text for all rows with privileged_context."
        )
