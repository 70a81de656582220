"""Token ids of the teacher's prompts, through the student's tokenizer and TRL's own rendering."""

from typing import Any

from trl import GRPOTrainer

from ..privileged import Context, TeacherView, check_lengths


class TeacherPrompts:
    """Renders what the teacher reads where it is not what the student reads.

    Args:
        trainer: renders prompts, with its tools and its chat template.
        view: builds prompts with the privileged context; None where there is none.
        template_kwargs: chat-template arguments of the teacher's prompts; None for the student's.
        limit: longest prompt in tokens, or None.
    """

    def __init__(
        self,
        trainer: GRPOTrainer,
        *,
        view: TeacherView | None,
        template_kwargs: dict[str, Any] | None,
        limit: int | None,
    ):
        self.trainer, self.view, self.limit = trainer, view, limit
        self.template_kwargs = trainer.chat_template_kwargs if template_kwargs is None else template_kwargs

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

    def check(self, dataset, *, batch_size: int = 256) -> None:
        """Measure every prompt of a map-style data set, so that one that is too long fails before training."""
        if not self.differ or not hasattr(dataset, "__len__"):
            return
        for start in range(0, len(dataset), batch_size):
            rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            self.token_ids(rows, [f"row {start + i} of the train set" for i in range(len(rows))])
