"""Floor 1: what only the teacher sees. Text and ids, no models."""

from .builders import TEMPLATES, Builder, Context, Prompt, get_builder, with_text
from .contexts import check_column, check_context, is_empty, read_shared_context
from .view import TeacherView


__all__ = [
    "TEMPLATES",
    "Builder",
    "Context",
    "Prompt",
    "TeacherView",
    "check_column",
    "check_context",
    "get_builder",
    "is_empty",
    "read_shared_context",
    "with_text",
]
