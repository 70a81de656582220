"""All rows are looked at before step 0: once, cheaply, without tokenizing them.

What a chat template does to a prompt depends on the roles and kinds of its messages, so one prompt of each shape is
rendered. Everything else is read off the rows themselves.
"""

import itertools
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..privileged import Context, TeacherView, check_context
from .files import Row
from .prompts import TEXT, RowError, Shape, check_tool_turns, look_at, num_bytes
from .row_images import (
    check_columns,
    check_images_of,
    check_images_of_context,
    count_in,
    counts_of,
    image_column,
    kinds_in,
    outline,
    tidy,
)
from .template_checks import Template


logger = logging.getLogger(__name__)

#: Stands for a privileged context that is known only during the run.
LATER = "a later answer"
#: What a row without a prompt begins with, before its environment adds to it.
OF_ENVIRONMENT = [{"role": "user", "content": ""}]


class Checked(NamedTuple):
    """A data set whose rows were looked at.

    Attributes:
        name: what errors call it.
        rows: the data set, or the first rows of a stream.
        sizes: bytes of text that prompt and context of each row have; hardly a tokenizer makes more tokens of them.
        shown: for rows whose prompt or context shows images True is in it, for those without False.
    """

    name: str
    rows: Sequence[Row]
    sizes: array
    shown: set[bool]


@dataclass
class RowChecks:
    """What the rows of a run are checked against.

    Args:
        template: renders prompts.
        kwargs, teacher_kwargs: arguments of the chat template for student and teacher.
        view: makes the teacher's prompts; None where it reads the student's.
        contexts_come_later: are privileged contexts made during the run?
        environment: does an environment add to the prompts, or make them?

    Attributes:
        sets: the data sets that `check_set` has looked at.
        has_streams: is one of them a stream, most rows of which come later?
        overhead, teacher_overhead: most bytes that template and builder add to a prompt of student and teacher.
    """

    template: Template
    kwargs: dict[str, Any]
    teacher_kwargs: dict[str, Any]
    view: TeacherView | None = None
    contexts_come_later: bool = False
    environment: bool = False
    sets: list[Checked] = field(default_factory=list, init=False)
    has_streams: bool = field(default=False, init=False)
    overhead: int = field(default=0, init=False)
    teacher_overhead: int = field(default=0, init=False)
    _shown: set[bool] = field(default_factory=set, init=False, repr=False)
    _rendered: set[Any] = field(default_factory=set, init=False, repr=False)

    def check_set(self, dataset: Any, name: str, *, num_first: int) -> None:
        """Check every row of a data set, or the first `num_first` of a stream; RowError names the first bad one."""
        columns = getattr(dataset, "column_names", None)
        if hasattr(dataset, "__len__"):
            rows, part = dataset, read(dataset, columns and [column for column in columns if column in self._reads])
        else:
            self.has_streams = True
            logger.info("the %s set is a stream: rows are checked as they come, the first %d now", name, num_first)
            rows = part = list(itertools.islice(dataset, num_first))
            columns = list(rows[0]) if rows else []
        if self.template.reads_parts:
            check_columns(columns, name)
        self._shown = set() if image_column(columns) is None else {True}
        sizes = self.check(part, lambda row: f"row {row} of the {name} set", counts=counts_of(rows))
        self.sets.append(Checked(name, rows, sizes, self._shown))

    @property
    def _reads(self) -> set[str]:
        """The columns that the checks read."""
        return {"prompt", "tools"} | (set() if self.view is None else {self.view.column})

    def check(
        self, rows: Iterable[Row], name: Callable[[int], str], *, counts: Sequence[int | None] | None = None
    ) -> array:
        """Check rows; return the `sizes` of `Checked`.

        Args:
            rows: with what they have of prompt, context and tools.
            name: from a row's number to what errors call it.
            counts: of the images in each row's column, where the rows come without it.

        Raises:
            RowError: for the first row that cannot be trained on.
        """
        sizes, first = array("q"), None
        for number, row in enumerate(rows):
            try:
                count = count_in(row) if counts is None else counts[number]
                shape, size = self._check_row(row, name(number), count)
                first = first or shape
                if (shape == TEXT) != (first == TEXT):
                    raise RowError(
                        "one prompt is a text, and another one is made of messages", "Give all in one form."
                    )
            except RowError as error:
                raise RowError(error.what, error.remedy, where=name(number)) from None
            except ValueError as error:  # names the row itself
                raise RowError(str(error)) from error
            sizes.append(size)
        return sizes

    def check_batch(self, rows: Sequence[Row]) -> None:
        """Check the rows of a batch where they come from a stream."""
        if self.has_streams:
            self.check(rows, in_batch(rows))

    def check_given(self, rows: Sequence[Row]) -> None:
        """Check prompts to which an environment has added: may its observation stand in them?"""
        if self.environment:  # images stand in their places already
            self.check(rows, in_batch(rows), counts=[None] * len(rows))

    def _check_row(self, row: Row, name: str, num_images: int | None) -> tuple[Shape, int]:
        """The shape of a row's prompt, and the size of prompt and context; images themselves are not looked at."""
        given = row.get("prompt", OF_ENVIRONMENT if self.environment else None)
        prompt = outline(given)
        shape, size = look_at(prompt, may_be_blank=num_images is not None or self.environment)
        check_images_of(tidy(given), num_images)
        if row.get("tools") and not (self.template.tools or self.environment):
            raise RowError(
                "the column `tools` is not read: the prompt would not tell of these tools",
                "Write them into the system turn, give functions as the trainer's `tools`, or drop the column.",
            )
        check_tool_turns(prompt, has_tools=bool(self.template.tools or self.environment))
        self.template.check_start(prompt)
        context = self._context_of(row, name)
        seen = shape, tuple((turn["role"], *kinds_in([turn])) for turn in context) if isinstance(context, list) else 0
        contexts = context or (self.view and self.view.shared)
        self._shown.add(bool(num_images) or "image" in (*kinds_in(prompt), *kinds_in(contexts)))
        if seen not in self._rendered:
            self._check_shape(prompt, context)
            self._rendered.add(seen)
        return shape, size + num_bytes(context)

    def _context_of(self, row: Row, name: str) -> Context | None:
        """The privileged context of a row; None where it is shared, or there is none."""
        if self.view is None or self.view.shared is not None:
            return None
        if self.contexts_come_later:
            return LATER
        context = tidy(check_context(row.get(self.view.column), column=self.view.column, row=name))
        check_images_of_context(context)
        return outline(context)

    def _check_shape(self, prompt: Any, context: Context | None) -> None:
        """Render a prompt of a shape that was not seen before, and the teacher's prompt made of it."""
        other = "use a tokenizer whose chat_template takes such turns."
        used = self.template.check(prompt, self.kwargs, whose="the prompt", remedy=f"Change these turns, or {other}")
        self.overhead = max(self.overhead, used)
        built, remedy = prompt, "Change teacher_chat_template_kwargs."
        if self.view is not None:
            remedy = f"Set privileged_builder: hint, which writes into the user's turn, or {other}"
            check_images_of_context(self.view.shared)
            try:
                built = self.view.prompts_with([self.view.shared or context], [{"prompt": prompt}])[0]
            except ValueError as error:  # the builder cannot take such turns
                raise RowError(str(error)) from error
            try:
                look_at(built, may_be_blank=True)
            except RowError as error:
                raise RowError(f"the teacher's prompt: {error.what}", error.remedy) from error
        used = self.template.check(built, self.teacher_kwargs, whose="the teacher's prompt", remedy=remedy)
        added = max(0, num_bytes(built) - num_bytes(prompt) - num_bytes(context))
        self.teacher_overhead = max(self.teacher_overhead, used + added)


def in_batch(rows: Sequence[Row]) -> Callable[[int], str]:
    """How errors call the rows of a batch, whose numbers in the data set are not known."""
    return lambda row: f"row {row} of this batch (prompt {str(rows[row].get('prompt'))[:80]!r})"


def read(dataset: Any, columns: list[str] | None) -> Iterator[Row]:
    """The rows of a data set with some of its columns; those of `datasets` come in batches, which is quick."""
    if not columns or dataset.format["type"] == "custom":  # not of `datasets`, or its rows are made as they are read
        yield from (dataset[i] for i in range(len(dataset)))
        return
    for batch in dataset.select_columns(columns).with_format(None).iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def maybe_too_long(sizes: array, *, overhead: int, limit: int, most: int) -> list[int]:
    """Rows that may have more than `limit` tokens, the longest first, at most `most` of them.

    >>> maybe_too_long(array("q", [5, 90, 40]), overhead=10, limit=40, most=9)
    [1, 2]
    """
    found = [row for row, size in enumerate(sizes) if size + overhead > limit]
    return sorted(found, key=lambda row: -sizes[row])[:most]
