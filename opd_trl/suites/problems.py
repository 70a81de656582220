"""Problems: rows of a file or of a known data set, each with an identity, no two of them the same."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ..data.adapters import ADAPTERS, RejectedRow
from ..data.files import READERS, DataError
from ..data.sources import adapter_of, load_named, read_file
from ..privileged import get_builder
from .protocol import Protocol


Message = dict[str, Any]
INSTRUCTIONS = ("instruction_id_list", "kwargs")


@dataclass(frozen=True)
class Problem:
    """One prompt of an evaluation, with what its answer is judged by.

    Args:
        id: the start of the SHA-256 of the prompt, so that it is the same in every file and order.
        messages: the prompt.
        answer: the right answer, or a list: of right ones, or of the values that are one answer in mathematics; None
            where the suite needs none.
        instructions: `instruction_ids` and `kwargs` of IFEval; None elsewhere.
        row: where it stands in its source, from 1 on.
    """

    id: str
    messages: list[Message]
    answer: Any = None
    instructions: dict[str, Any] | None = None
    row: int = 0


@dataclass(frozen=True)
class ProblemSet:
    """The problems of a file or data set, in its order, no two of them the same; and what was left out, by reason."""

    source: str
    problems: list[Problem]
    dropped: dict[str, int]

    @property
    def hash(self) -> str:
        """The first 12 digits of the SHA-256 of prompts and answers, whatever their order."""
        lines = sorted(json.dumps([p.id, p.answer, p.instructions], sort_keys=True) for p in self.problems)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]

    def without(self, dropped: dict[str, str]) -> "ProblemSet":
        """The set less the problems of these ids, counted as dropped by their reasons; DataError: none is left."""
        left = [problem for problem in self.problems if problem.id not in dropped]
        counts = dict(Counter(self.dropped) + Counter(dropped.values()))
        if not left:
            first = f"The first of them is row {self.problems[0].row}."
            raise DataError(f"{self.source}: no problem is left ({_listed(counts)}). {first} Nothing can be measured.")
        return ProblemSet(self.source, left, counts)


def read_problems(source: str, *, answers: bool, limit: int | None = None) -> ProblemSet:
    """Read the problems of a file, or of a data set that `opd-trl data list` knows by name or hub id.

    A row that repeats a prompt with the same answer is left out and counted: it would weigh double, and the intervals
    take problems for independent. A prompt with two different answers is an error.

    Args:
        source: a JSONL, Parquet, CSV or JSON file of `prompt` (text or messages) and, where asked for, `answer`; or a
            name.
        answers: does every row need an answer?
        limit: take the first so many problems.

    Raises:
        DataError: missing, unreadable or empty, a row without prompt or answer, contradicting rows. File and row are
            named.
    """
    rows, dropped = _rows(source)
    found: dict[str, Problem] = {}
    for number, row in rows:
        problem = _problem(row, number, where=f"{source}, row {number}", answers=answers)
        if problem.id in found:
            known = found[problem.id]
            if (known.answer, known.instructions) != (problem.answer, problem.instructions):
                raise DataError(
                    f"{source}: rows {known.row} and {number} have the same prompt and different answers, "
                    f"{known.answer!r} and {problem.answer!r}. Remove the wrong one."
                )
            dropped["duplicate"] += 1
        elif limit is None or len(found) < limit:
            found[problem.id] = problem
    if not found:
        raise DataError(f"{source} has no problem ({_listed(dropped) or 'no row'}). Nothing can be measured.")
    return ProblemSet(source, list(found.values()), dict(dropped))


def _rows(source: str) -> tuple[Iterable[tuple[int, dict[str, Any]]], Counter[str]]:
    """Numbered rows, and a count of the rejected ones that is filled while they are read."""
    dropped: Counter[str] = Counter()
    path = Path(source).expanduser()
    if path.exists() or path.suffix in READERS:
        return enumerate(read_file(path), start=1), dropped
    by_hub_id = {adapter.hub_id: name for name, adapter in ADAPTERS.items()}
    name = by_hub_id.get(source, source)
    adapter = adapter_of(name)

    def adapted():
        for number, row in enumerate(load_named(name), start=1):
            try:
                yield number, adapter.to_row(row)
            except RejectedRow as error:
                dropped[error.what] += 1

    return adapted(), dropped


def _problem(row: dict[str, Any], number: int, *, where: str, answers: bool) -> Problem:
    prompt = row.get("prompt")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not _is_prompt(messages):
        raise DataError(
            f'{where} has no prompt (columns: {", ".join(row) or "none"}). Expected "prompt": a text, or messages '
            "that end with a user turn. `opd-trl data prepare` makes such rows of known data sets."
        )
    answer = row.get("answer")
    if answers and (answer is None or answer == [] or not str(answer).strip()):
        raise DataError(f'{where} has no answer (columns: {", ".join(row)}). Expected "answer", the right one.')
    instructions = None
    if row.get(INSTRUCTIONS[0]) is not None:
        instructions = {"instruction_ids": list(row[INSTRUCTIONS[0]]), "kwargs": list(row.get(INSTRUCTIONS[1]) or [])}
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    answer = answer if isinstance(answer, list) or answer is None else str(answer)
    return Problem(digest[:16], messages, answer, instructions, number)


def _is_prompt(messages: Any) -> bool:
    if not isinstance(messages, list) or not messages:
        return False
    turns = all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) and "role" in turn for turn in messages
    )
    return turns and messages[-1]["role"] == "user" and bool(messages[-1]["content"].strip())


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def messages_of(problem: Problem, protocol: Protocol, context: Any = None) -> list[Message]:
    """The conversation that is asked: template, system prompt, and a context that the measured model reads.

    Args:
        problem: its last turn is the user's.
        protocol: template and system prompt.
        context: text (a system message) or messages (worked examples) that go before all: what a teacher reads.

    Example:
        >>> protocol = Protocol(suite="math", temperature=0, max_new_tokens=9, prompt_template="{prompt} Box it.")
        >>> messages_of(Problem("0", [{"role": "user", "content": "1 + 1?"}]), protocol, "Be brief.")
        [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '1 + 1? Box it.'}]
    """
    *before, last = problem.messages
    messages = [*before, {**last, "content": protocol.prompt_template.replace("{prompt}", last["content"])}]
    if protocol.system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": protocol.system_prompt}, *messages]
    if context is None:
        return messages
    return get_builder("system_prompt" if isinstance(context, str) else "few_shot")(messages, context)


def encode(messages: list[Message], tokenizer: Any, protocol: Protocol) -> list[int]:
    """Token ids of a conversation up to where the answer starts; raises ValueError where the template does not fit."""
    if tokenizer.chat_template is None and protocol.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template. Set chat_template in the protocol to a Jinja file beside it, e.g. "
            "`{% for m in messages %}{{ m['content'] }}\\n{% endfor %}` for a base model."
        )
    options = {} if protocol.chat_template is None else {"chat_template": protocol.chat_template}
    try:
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, **options, **protocol.chat_template_kwargs
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the chat template refuses a prompt with the roles {roles}: {error}.") from None
    return list(encoded["input_ids"])
