"""The completions that rows bring along: their token ids as the student would have written them, and their checks."""

from collections.abc import Sequence
from typing import Any

from ...contents import text_of
from ...data.prompts import RowError, num_bytes
from ...data.row_checks import Checked, RowChecks, read
from ...data.template_checks import Template
from ..config.opd_config import OPDConfig


#: Columns that hold a given text: a text or messages, or a whole conversation that ends with it.
COMPLETION, MESSAGES = "completion", "messages"
#: Column of `opd-trl data traces`: was the text cut before its end?
TRUNCATED = "truncated"
COLUMNS = (COMPLETION, MESSAGES, TRUNCATED)
#: Given texts that are tokenized before a run to measure them: those of most bytes.
MOST_MEASURED = 10_000

Row = dict[str, Any]


class GivenText:
    """Reads the given text of rows.

    A text ends with the token that ends an answer of the student, as its chat template or we put it there.

    Args:
        template: renders prompts.
        kwargs: of the chat template.
        ends: ids that end an answer.
        args: `max_completion_length`; whether whole completions are trained on, which `lmbda` below 1 says.
    """

    def __init__(self, template: Template, kwargs: dict[str, Any], ends: Sequence[int], args: OPDConfig):
        self.template, self.kwargs, self.ends = template, kwargs, frozenset(ends)
        self.tokenizer = template.tokenizer
        self.is_whole = args.lmbda < 1.0
        self.limit = args.max_completion_length if self.is_whole else None

    def check_set(self, checked: Checked) -> None:
        """Look at the given text of every row; those that may be too long are tokenized.

        Raises:
            RowError: for the first row whose text is missing, cannot be used, or is longer than the limit.
        """
        columns = getattr(checked.rows, "column_names", None)
        columns = columns and [name for name in ("prompt", *COLUMNS) if name in columns]
        sizes = []
        for number, row in enumerate(read(checked.rows, columns)):
            sizes.append(num_bytes(self._turn(row, self._name(checked, number))["content"]))
        longest = sorted(range(len(sizes)), key=lambda number: -sizes[number])[:MOST_MEASURED]
        for number in longest:
            if self.limit is not None and sizes[number] >= self.limit:  # the end takes a token too
                self.ids(checked.rows[number], self._name(checked, number))

    def ids(self, row: Row, name: str) -> list[int]:
        """Token ids of a row's given text behind its prompt, the end included.

        They are what the chat template writes behind the prompt, where it keeps the text and the prompt's own ids;
        or else the text's alone.

        Args:
            row: with its prompt.
            name: what errors call it.

        Raises:
            RowError: as in `check_set`.
        """
        prompt, turn = row["prompt"], self._turn(row, name)
        text = turn["content"].strip()
        if isinstance(prompt, str):
            whole, start = prompt + turn["content"], prompt
        else:
            whole, start = (
                self.template.render([*prompt, turn], self.kwargs),
                self.template.render(prompt, self.kwargs),
            )
        both, before = self.tokenizer([whole, start], add_special_tokens=isinstance(prompt, str))["input_ids"]
        if text in whole[len(start) :] and both[: len(before)] == before:
            found = both[len(before) :]
        else:
            found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        end = next((place for place, token in enumerate(found) if token in self.ends), None)
        ids = [*found, self.tokenizer.eos_token_id] if end is None else found[: end + 1]
        if self.limit is not None and len(ids) > self.limit:
            raise RowError(
                f"the given completion has {len(ids)} tokens with its end, at most {self.limit} fit "
                "(max_completion_length)",
                "Raise max_completion_length, or filter the row out. It is never cut in silence.",
                where=name,
            )
        return ids

    def _turn(self, row: Row, name: str) -> dict[str, Any]:
        """The assistant turn that holds a row's given text; RowError where there is none that can be used."""
        try:
            turn = turn_of(row)
            text = turn["content"]
            for token in self.tokenizer.convert_ids_to_tokens(sorted(self.ends)):
                if token in text.rstrip().removesuffix(token):
                    raise RowError(
                        f"the given completion holds {token}, which ends an answer, before its end",
                        "Take it out of the text: the end is added here.",
                    )
            if self.is_whole and row.get(TRUNCATED):
                raise RowError(
                    f"the given completion was cut before its end (column {TRUNCATED!r}): it would teach the student "
                    "to stop there",
                    "Filter such rows out (`opd-trl data filter` does).",
                )
        except RowError as error:
            raise RowError(error.what, error.remedy, where=name) from None
        return turn

    @staticmethod
    def _name(checked: Checked, number: int) -> str:
        return f"row {number} of the {checked.name} set"


def check_given(checks: RowChecks, args: OPDConfig) -> None:
    """Look at the given text of the training set, where it is read, before a model is built.

    Raises:
        ValueError: it would stand where tools take turns.
        RowError: as `GivenText.check_set`.
    """
    if args.reads_given_text and (checks.template.tools or checks.environment):
        raise ValueError(
            f"lmbda={args.lmbda}, teacher_prefix_tokens={args.teacher_prefix_tokens} with tools or an environment: a "
            "given text has no turns of theirs. Leave given text out."
        )
    given = GivenText(checks.template, checks.kwargs, [checks.template.tokenizer.eos_token_id], args)
    for checked in checks.sets if args.reads_given_text else ():
        if checked.name == "train":
            given.check_set(checked)


def turn_of(row: Row) -> dict[str, Any]:
    """The assistant turn of a row's `completion`, or the last one of its `messages`, its content as one text.

    Raises:
        RowError: there is none, it is not one answer in words, or `messages` have another prompt than the row.

    Example:
        >>> turn_of({"prompt": "1 + 1?", "completion": "2"})
        {'role': 'assistant', 'content': '2'}
    """
    completion, messages = row.get(COMPLETION), row.get(MESSAGES)
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not completion and messages:
        completion = messages[-1:]
        if said_in(messages[:-1]) != said_in(row["prompt"]):
            raise RowError(
                "the turns of `messages` before the last one are not the row's prompt, so that its answer is one to "
                "something else",
                "Make prompt and messages agree, or give the answer as `completion`.",
            )
    if not completion:
        raise RowError(
            "no given completion: there is neither a `completion` nor `messages`",
            "Fill it (`opd-trl data traces` lets a teacher write it), or set lmbda: 1.0 and no teacher_prefix_tokens.",
        )
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in completion]
    if roles != ["assistant"]:
        raise RowError(
            "the given completion is not one assistant turn",
            "Give a text, or messages such as [{'role': 'assistant', 'content': '4'}]. Turns before it are prompt.",
        )
    turn = {name: value for name, value in completion[0].items() if value}
    if "tool_calls" in turn:
        raise RowError("the given completion calls tools", "Give answers in words.")
    text = text_of(turn.get("content"))
    if not text.strip():
        raise RowError("the given completion is empty", "Fill it, or filter the row out.")
    return turn | {"content": text}


def said_in(prompt: Any) -> list[tuple[str, str]]:
    """Who says what in a prompt; a text is what a user says."""
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    return [(turn["role"], text_of(turn.get("content"))) for turn in turns]
