"""The teacher's prompts of a batch of rows."""

from typing import Any

from .builders import Prompt, get_builder
from .contexts import Context, check_context, read_shared_context


class TeacherView:
    """Builds what the teacher reads in place of the student's prompt.

    Args:
        builder: name or import path, see `get_builder`.
        template: Jinja template in place of the builder's wording.
        column: name of the column with the privileged context.
        text, file: one context shared by all rows, in place of the column.

    Raises:
        ValueError: see `get_builder` and `read_shared_context`.

    Example:
        >>> view = TeacherView(builder="hint", column="tip")
        >>> view.prompts([{"prompt": "2 + 2?", "tip": "count"}], ["row 0"])
        ['2 + 2?\\n\\nA hint, for you alone: count']
    """

    def __init__(
        self,
        *,
        builder: str,
        column: str,
        template: str | None = None,
        text: str | None = None,
        file: str | None = None,
    ):
        self.column = column
        self.shared = read_shared_context(text, file)
        self.builder = get_builder(builder, template=template)

    def prompts(self, rows: list[dict[str, Any]], names: list[str]) -> list[Prompt]:
        """The teacher's prompt of each row; `names` says in an error which row it is about."""
        contexts = [
            self.shared or check_context(row.get(self.column), column=self.column, row=name)
            for row, name in zip(rows, names, strict=True)
        ]
        return self.prompts_with(contexts, rows)

    def prompts_with(self, contexts: list[Context | None], rows: list[dict[str, Any]]) -> list[Prompt]:
        """The same with other contexts than those of the rows; where one is None the bare prompt."""
        return [
            row["prompt"] if context is None else self.builder(row["prompt"], context)
            for context, row in zip(contexts, rows, strict=True)
        ]
