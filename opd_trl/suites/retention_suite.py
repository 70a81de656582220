"""`--suite retention`: what is left of what the model could do, in plain text and short questions?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.files import DataError
from ..data.sources import read_file
from ..evaluation.perplexity import TextScore, per_byte, per_token, perplexity
from ..evaluation.short_answers import gives_answer
from ..models.sampling import Completion
from .problems import Problem, read_problems
from .protocol import Protocol, digest
from .results import Metric, by_problem
from .store import Sample


TASKS, TEXTS = "tasks", "texts"


class RetentionSuite:
    """Perplexity of plain texts, and short questions.

    Args:
        protocol: its files, `texts` and `tasks`.
        data: questions in place of those of the protocol; or None.

    Raises:
        DataError: a file is missing or has no text.
    """

    def __init__(self, protocol: Protocol, data: str | None) -> None:
        if data is None and protocol.tasks is None:
            raise DataError("the protocol names no `tasks` file. Give questions and answers with --data.")
        if protocol.texts is None:
            raise DataError("the protocol names no `texts` file. Set `texts`, a JSONL file of `text`, beside it.")
        self.parts = {TASKS: read_problems(data or protocol.tasks, answers=True)}
        self.texts = read_texts(Path(protocol.texts))

    def judge(self, part: str, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[dict[str, Any]]:
        """Is one of the right answers given?"""
        pairs = zip(problems, completions, strict=True)
        return [{"correct": gives_answer(done.text, accepted(problem))} for problem, done in pairs]

    def metrics(self, samples: list[Sample]) -> list[Metric]:
        """Share of right answers; nats per byte, every text weighing the same."""
        tasks = [sample for sample in samples if sample["part"] == TASKS]
        texts = [sample for sample in samples if sample["part"] == TEXTS]
        bits = by_problem(texts, lambda sample: sample["nats"] / sample["bytes"])
        return [
            Metric("tasks", by_problem(tasks, lambda sample: sample["correct"]), "short questions answered rightly"),
            Metric("nats per byte", bits, "of plain texts, each weighing the same; lower is better", None, ""),
        ]

    def counts(self, samples: list[Sample]) -> dict[str, int]:
        """Nothing to count."""
        return {}

    def figures(self, samples: list[Sample]) -> dict[str, float]:
        """Of all texts together, every token or byte weighing the same."""
        scores = [TextScore(s["nats"], s["tokens"], s["bytes"]) for s in samples if s["part"] == TEXTS]
        return {
            "perplexity": perplexity(scores),
            "nats per token, pooled": per_token(scores),
            "nats per byte, pooled": per_byte(scores),
        }

    def close(self) -> None:
        """Nothing to end."""


def accepted(problem: Problem) -> list[str]:
    """The right answers of a problem."""
    return problem.answer if isinstance(problem.answer, list) else [problem.answer]


def read_texts(path: Path) -> dict[str, str]:
    """Texts by the digest of each.

    Raises:
        DataError: the file cannot be read, a row has no text, or a text comes twice.
    """
    found: dict[str, str] = {}
    for number, row in enumerate(read_file(path), start=1):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip() or digest(text.encode()) in found:
            raise DataError(f'{path}, row {number} has no text of its own. Expected {{"text": ...}}, all different.')
        found[digest(text.encode())] = text
    if not found:
        raise DataError(f"{path} has no text. Put one into each line.")
    return found
