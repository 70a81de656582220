"""Token ids of the teacher's prompts, through the student's tokenizer and TRL's own rendering."""

import inspect
import re
from itertools import islice
from typing import Any

from torch import Tensor

from ..contents import texts_of
from ..data.row_checks import RowChecks, in_batch
from ..data.template_checks import Template
from ..models.loading import Tokenizer
from ..models.multimodal import TEACHER_IMAGES, ReadPrompt
from ..models.sequences import left_pad, unpadded
from ..privileged import Context, Prompt, TeacherView
from ..teachers.several import routing
from ..teachers.shared_prefix import shared_tokens
from ..teachers.text_ids import check_aligned
from .agents import check_tools
from .config.opd_config import OPDConfig
from .images import check_shown
from .input_checks import tokenizer_of


#: Rows by which two tokenizers are tried before anything is trained.
FEW = 32


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
    """What rows are checked against before a model is built; `options` are further ones of the trainer.

    Raises:
        RowError: it has tools that the chat template cannot take.
    """
    check_tools(args, processing_class, options)
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
        pairs: the student's tokenizer with that of each teacher, where they read text; empty: they read its tokens.
    """

    def __init__(self, trainer, view: TeacherView | None):
        self.trainer, self.view = trainer, view
        self.template_kwargs = trainer.row_checks.teacher_kwargs
        self.pairs = trainer.shared_ids.pairs if trainer.shared_ids.reads_text else ()
        for processing_class in [pair.tokenizer for pair in self.pairs] or [trainer.processing_class]:
            check_template_kwargs(trainer.args.teacher_chat_template_kwargs or {}, processing_class)
        windows = [teacher.window for teacher in trainer.teachers.values() if teacher.window is not None]
        limits = [window - trainer.max_completion_length for window in windows]
        if trainer.args.max_teacher_prompt_length is not None:
            limits.append(trainer.args.max_teacher_prompt_length)
        self.limit = min(limits, default=None)
        if self.pairs:
            self._check_text()

    @property
    def differ(self) -> bool:
        """Does the teacher read another prompt than the student?"""
        return self.view is not None or bool(self.pairs) or self.template_kwargs != self.trainer.chat_template_kwargs

    def entries(
        self, rows: list[dict[str, Any]], batch: dict[str, Any], *, contexts: list[Context | None] | None = None
    ) -> dict[str, Tensor]:
        """Batch entries of the teacher's prompts; none where it reads what the student reads.

        Args:
            rows: of the batch, each with the prompt that the student was given.
            batch: with the student's `prompt_ids` and `prompt_mask`.
            contexts: as in `read`.

        Raises:
            ValueError: a prompt that is too long, that lacks images of the student's, or that is not the one that a
                `rollout_func` gave the student.
            RowError: an environment's observation cannot stand in its prompt.
        """
        self.trainer.row_checks.check_given(rows)
        if not self.differ:
            return {}
        names = list(map(in_batch(rows), range(len(rows))))
        given = [row["prompt"] for row in rows]
        if self.trainer.rollout_func is not None:
            check_rollout(unpadded(batch, "prompt"), self.trainer.tokenize(given, rows), names)
        prompts = self._prompts(rows, names, contexts)
        check_shown(given, prompts, batch.get("num_images"), names)
        entries = self.laid_out(self._read(prompts, rows, names))
        if self.pairs:
            entries |= self.trainer.shared_ids.entries(batch | entries)
        return entries

    def tokenizer_of(self, batch: dict[str, Any], row: int) -> Tokenizer:
        """What reads the teacher's prompt of a row of a batch."""
        return self.trainer.shared_ids.pair_of(batch, row).tokenizer if self.pairs else self.trainer.tokenizer

    def shared_tokens(self, batch: dict[str, Tensor]) -> Tensor:
        """How many tokens all prompts that the teacher reads begin with, as an entry for all rows of a batch."""
        name = "teacher_prompt" if self.differ else "prompt"
        return shared_tokens(batch[f"{name}_ids"], batch[f"{name}_mask"])

    def laid_out(self, prompts: list[ReadPrompt]) -> dict[str, Any]:
        """Batch entries of prompts that the teacher reads."""
        ids, mask = left_pad(
            [prompt.ids for prompt in prompts],
            pad_token_id=0 if self.pairs else self.trainer.tokenizer.pad_token_id,
            device=self.trainer.accelerator.device,
        )
        images = [prompt.images for prompt in prompts]
        entries = {"teacher_prompt_ids": ids, "teacher_prompt_mask": mask}
        return entries | {TEACHER_IMAGES: images} if any(images) else entries

    def read(
        self, rows: list[dict[str, Any]], names: list[str], *, contexts: list[Context | None] | None = None
    ) -> list[ReadPrompt]:
        """Each row's prompt as the teacher reads it.

        Args:
            rows: of the data set.
            names: tell the user which row an error is about.
            contexts: in place of the rows' own; where one is None the teacher reads the bare prompt.
        """
        return self._read(self._prompts(rows, names, contexts), rows, names)

    def _check_text(self) -> None:
        """Refuse a teacher whose template cannot render the rows, or whose tokens do not fit to the student's."""
        trainer, checks = self.trainer, self.trainer.row_checks
        if trainer.tools:
            raise ValueError(
                "teacher_vocabulary='text' with tools: their answers and the beginning of the next turn stand in the "
                "student's chat template, which the teacher would read as plain text. Choose a teacher of the "
                "student's tokenizer, or leave the tools out."
            )
        for checked in checks.sets:
            rows = list(islice(checked.rows, FEW))
            if isinstance(rows[0]["prompt"], list) and not all(pair.tokenizer.chat_template for pair in self.pairs):
                raise ValueError(
                    "the prompts are made of messages, and the teacher's tokenizer has no chat template. Give it one "
                    "(teacher_processing_class with a chat_template), or give prompts as text."
                )
            if not checks.contexts_come_later:
                self.read(rows[:1], [f"the first row of the {checked.name} set"])
            texts = [text for row in rows for text in texts_of(row["prompt"])]
            for pair in self.pairs:
                check_aligned(pair, trainer.tokenizer, texts)

    def _prompts(
        self, rows: list[dict[str, Any]], names: list[str], contexts: list[Context | None] | None
    ) -> list[Prompt]:
        """The teacher's prompts of rows, as text or messages."""
        if self.view is None:
            return [row["prompt"] for row in rows]
        return self.view.prompts(rows, names) if contexts is None else self.view.prompts_with(contexts, rows)

    def _read(self, prompts: list[Prompt], rows: list[dict[str, Any]], names: list[str]) -> list[ReadPrompt]:
        """The teachers' prompts of rows under their own chat-template arguments."""
        if self.pairs:
            places = routing.places(rows, list(self.trainer.teachers))
            found = [
                ReadPrompt(rendered(self.pairs[place].tokenizer, prompt, **self.template_kwargs))
                for place, prompt in zip(places, prompts, strict=True)
            ]
        else:
            student_kwargs, self.trainer.chat_template_kwargs = self.trainer.chat_template_kwargs, self.template_kwargs
            try:
                found = self.trainer.read_prompts(prompts, rows)
            finally:
                self.trainer.chat_template_kwargs = student_kwargs
        check_lengths([prompt.ids for prompt in found], names, limit=self.limit)
        return found


def rendered(tokenizer: Tokenizer, prompt: Prompt, **options: Any) -> list[int]:
    """Token ids of a prompt by the teacher's own tokenizer and chat template, which takes `options`."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    template = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return tokenizer.apply_chat_template(prompt, **template, **options)["input_ids"]


def check_template_kwargs(kwargs: dict[str, Any], processing_class) -> None:
    """Raise ValueError for an argument of the teacher's chat template that the template never reads."""
    template = getattr(processing_class, "chat_template", None)
    options = inspect.signature(processing_class.apply_chat_template).parameters
    for name in kwargs if template else ():  # mistral-common renders without one
        if name not in options and not re.search(rf"\b{re.escape(name)}\b", str(template)):
            raise ValueError(
                f"teacher_chat_template_kwargs has {name!r}, which the chat template does not read, so the teacher "
                "would read what the student reads. Correct the name, or leave it out."
            )


def check_rollout(given: list[list[int]], rendered: list[list[int]], names: list[str]) -> None:
    """Raise ValueError where a `rollout_func` gave the student another prompt than that of the row."""
    for mine, row, name in zip(given, rendered, names, strict=True):
        if mine != row:
            at = next((i for i, (a, b) in enumerate(zip(mine, row, strict=False)) if a != b), min(len(mine), len(row)))
            raise ValueError(
                f"rollout_func gave the student another prompt than that of {name}: {len(mine)} tokens in place of "
                f"{len(row)}, different from token {at + 1} on. The teacher's prompt is built from the row and would "
                "lack what was changed. Return the prompt_ids of the row's prompt under its chat template and put the "
                "rest into completion_ids with an env_mask of 0, or let the teacher read the student's own prompt: no "
                "privileged context and no teacher_chat_template_kwargs."
            )


def check_lengths(prompt_ids: list[list[int]], names: list[str], *, limit: int | None) -> None:
    """Raise ValueError for the first teacher prompt longer than `limit` tokens; None means no limit."""
    for ids, name in zip(prompt_ids, names, strict=True):
        if limit is not None and len(ids) > limit:
            raise ValueError(
                f"the teacher's prompt in {name} has {len(ids)} tokens, at most {limit} fit. Shorten its privileged "
                "context, filter the row out, or raise max_teacher_prompt_length (within the teacher's context window "
                "less max_completion_length). It is never cut in silence."
            )
