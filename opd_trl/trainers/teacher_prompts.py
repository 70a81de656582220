"""Token ids of the teacher's prompts, through the student's tokenizer and TRL's own rendering."""

from typing import Any

from ..data.row_checks import RowChecks
from ..data.template_checks import Template
from ..privileged import Context, TeacherView
from .input_checks import tokenizer_of
from .opd_config import OPDConfig


def teacher_view(args: OPDConfig) -> TeacherView:
    """What the arguments say of the privileged context: which builder makes a prompt of it, and where it stands."""
    return TeacherView(
        builder=args.privileged_builder,
        template=args.privileged_template,
        column=args.privileged_context_column,
        text=args.privileged_context,
        file=args.privileged_context_file,
    )


def row_checks(args: OPDConfig, processing_class, options: dict[str, Any]) -> RowChecks:
    """What rows are checked against before a model is built; `options` are further ones of the trainer."""
    kwargs, teacher_kwargs = args.chat_template_kwargs or {}, args.teacher_chat_template_kwargs
    return RowChecks(
        Template(processing_class, tokenizer_of(processing_class), options.get("tools")),
        kwargs,
        kwargs if teacher_kwargs is None else teacher_kwargs,
        view=teacher_view(args),
        contexts_come_later=args.sibling_context,
        environment=options.get("environment_factory") is not None,
    )


class TeacherPrompts:
    """Renders what the teacher reads where it is not what the student reads.

    Args:
        trainer: an OPDTrainer with its teachers; renders prompts, with its tools and its chat template.
        view: builds prompts with the privileged context; None where there is none.

    Attributes:
        template_kwargs: chat-template arguments of the teacher's prompts.
        limit: longest prompt in tokens that every teacher can read and the arguments allow; None where there is none.
    """

    def __init__(self, trainer, view: TeacherView | None):
        self.trainer, self.view = trainer, view
        kwargs = trainer.args.teacher_chat_template_kwargs
        self.template_kwargs = trainer.chat_template_kwargs if kwargs is None else kwargs
        windows = [teacher.window for teacher in trainer.teachers.values() if teacher.window is not None]
        limits = [window - trainer.max_completion_length for window in windows]
        if trainer.args.max_teacher_prompt_length is not None:
            limits.append(trainer.args.max_teacher_prompt_length)
        self.limit = min(limits, default=None)

    @property
    def differ(self) -> bool:
        """Does the teacher read another prompt than the student?"""
        return self.view is not None or self.template_kwargs != self.trainer.chat_template_kwargs

    def token_ids(
        self, rows: list[dict[str, Any]], names: list[str], *, contexts: list[Context | None] | None = None
    ) -> list[list[int]]:
        """Token ids of each row's prompt.

        Args:
            rows: of the data set.
            names: tell the user which row an error is about.
            contexts: in place of the rows' own; where one is None the teacher reads the bare prompt.
        """
        if contexts is not None:
            prompts = self.view.prompts_with(contexts, rows)
        else:
            prompts = [row["prompt"] for row in rows] if self.view is None else self.view.prompts(rows, names)
        student_kwargs, self.trainer.chat_template_kwargs = self.trainer.chat_template_kwargs, self.template_kwargs
        try:
            prompt_ids = self.trainer.tokenize(prompts)
        finally:
            self.trainer.chat_template_kwargs = student_kwargs
        check_lengths(prompt_ids, names, limit=self.limit)
        return prompt_ids


def check_lengths(prompt_ids: list[list[int]], names: list[str], *, limit: int | None) -> None:
    """Raise ValueError for the first teacher prompt longer than `limit` tokens; None means no limit."""
    for ids, name in zip(prompt_ids, names, strict=True):
        if limit is not None and len(ids) > limit:
            raise ValueError(
                f"the teacher's prompt in {name} has {len(ids)} tokens, at most {limit} fit. Shorten its privileged "
                "context, filter the row out, or raise max_teacher_prompt_length (within the teacher's context window "
                "less max_completion_length). It is never cut in silence."
            )
