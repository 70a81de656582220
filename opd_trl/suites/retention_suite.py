"""`--suite retention`: what is left of what the model could do, in plain text and short questions?"""

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.files import DataError
from ..data.sources import read_file
from ..models.agreement import fold_head
from ..models.forward import completion_hidden_states, read_head, scatter, token_log_probs
from ..models.sampling import Completion
from .problems import Problem, read_problems
from .protocol import Protocol, digest
from .results import Metric, Suite, by_problem
from .store import Sample, Store


# An accepted answer counts where it stands within so many words; a chatty model may begin "The capital of Peru is".
MAX_WORDS = 40


def gives_answer(text: str, accepted: Sequence[str]) -> bool:
    """Does the first sentence of a text, at most its first `MAX_WORDS` words, hold an accepted answer as whole words?

    Case, accents, punctuation and the commas within numbers do not count. A looser measure than the equality of
    strings, since instruction-tuned models answer in sentences; a collapsed text holds no answer.

    Example:
        >>> gives_answer("The capital of Peru is Lima.", ["Lima"]), gives_answer("It is 1,024!", ["1024"])
        (True, True)
        >>> gives_answer("It is limasol.", ["Lima"]), gives_answer("112", ["12"]), gives_answer("", ["12"])
        (False, False, False)
    """
    first = re.split(r"(?<=[.!?])\s|\n", text.strip()[:2000], maxsplit=1)[0]
    words = plain(" ".join(first.split()[:MAX_WORDS]))
    return any(f" {plain(answer)} " in f" {words} " for answer in accepted)


def plain(text: str) -> str:
    """Letters and digits in lower case, one blank between words.

    >>> plain("It's São Paulo: 1,024.5!")
    'it s sao paulo 1024.5'
    """
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(sign for sign in text if not unicodedata.combining(sign))
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    return " ".join(re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w.]|_", " ", text).split())


# From ids `(B, L)` and mask `(B, L)`, right-padded, to the log-probabilities of the ids `(B, L)`: zero at the first
# position, which nothing predicts, and at padding.
Scorer = Callable[[Tensor, Tensor], Tensor]


class TextScore(NamedTuple):
    """The negative log-likelihood of one text.

    Args:
        nats: summed over its tokens.
        num_tokens: how many are predicted: all but the first.
        num_bytes: of those tokens' text in UTF-8, so that models with different tokenizers compare.
    """

    nats: float
    num_tokens: int
    num_bytes: int


def score_texts(texts: Sequence[str], tokenizer, scorer: Scorer, *, batch_size: int = 8) -> list[TextScore]:
    """Score texts, each from its own start.

    A tokenizer with a start token puts it first, and every token of the text is predicted; without one the first
    token is not, nor are its bytes counted.

    Args:
        texts: plain, not empty.
        tokenizer: of the model behind `scorer`.
        scorer: see `Scorer`.

    Raises:
        ValueError: a text of fewer than two tokens.
    """
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        if len(ids) < 2:
            raise ValueError(f"a text of {len(ids)} tokens cannot be scored: {text[:50]!r}. Give longer ones.")
    order, scores = sorted(range(len(texts)), key=lambda i: len(encoded[i])), {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(encoded[i]) for i in chosen)
        ids = torch.tensor([encoded[i] + [0] * (width - len(encoded[i])) for i in chosen])
        mask = torch.tensor([[1] * len(encoded[i]) + [0] * (width - len(encoded[i])) for i in chosen])
        log_probs = scorer(ids, mask).double().sum(1).tolist()
        for i, total in zip(chosen, log_probs, strict=True):
            first = tokenizer.decode(encoded[i][:1], skip_special_tokens=True)
            num_bytes = len(texts[i].encode()) - len(first.encode())
            scores[i] = TextScore(-total, len(encoded[i]) - 1, num_bytes)
    return [scores[i] for i in range(len(texts))]


def pooled(scores: Sequence[TextScore]) -> dict[str, float]:
    """Perplexity and nats of all texts together, every token or byte weighing the same.

    >>> pooled([TextScore(6.0, 2, 8), TextScore(2.0, 2, 8)])["nats per byte, pooled"]
    0.5
    """
    nats, tokens, size = (sum(column) for column in zip(*scores, strict=True))
    return {
        "perplexity": math.exp(nats / tokens),
        "nats per token, pooled": nats / tokens,
        "nats per byte, pooled": nats / size,
    }


TASKS, TEXTS = "tasks", "texts"


class RetentionSuite(Suite):
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
        """Whether each answer gives one of the right ones."""
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

    def figures(self, samples: list[Sample]) -> dict[str, float]:
        """Perplexity and nats of all texts together."""
        return pooled([TextScore(s["nats"], s["tokens"], s["bytes"]) for s in samples if s["part"] == TEXTS])


def accepted(problem: Problem) -> list[str]:
    """The right answers of a problem, as a list where there is one only too."""
    return problem.answer if isinstance(problem.answer, list) else [problem.answer]


def read_texts(path: Path) -> dict[str, str]:
    """SHA-256, 12 digits -> text, of a JSONL file; raises DataError where a row has no text of its own."""
    found: dict[str, str] = {}
    for number, row in enumerate(read_file(path), start=1):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip() or digest(text.encode()) in found:
            raise DataError(f'{path}, row {number} has no text of its own. Expected {{"text": ...}}, all different.')
        found[digest(text.encode())] = text
    if not found:
        raise DataError(f"{path} has no text. Put one into each line.")
    return found


def score(texts: dict[str, str], tokenizer: Any, model: Any, store: Store) -> None:
    """Score those texts of the retention suite that the store does not have yet, and write their samples."""
    todo = {name: text for name, text in texts.items() if (TEXTS, name, 0, 0) not in store.samples}
    scores = score_texts(list(todo.values()), tokenizer, make_scorer(model)) if todo else []
    store.append(
        {"part": TEXTS, "problem": name, "seed": 0, "sample": 0, "nats": nats, "tokens": tokens, "bytes": size}
        for name, (nats, tokens, size) in zip(todo, scores, strict=True)
    )


def make_scorer(model: Any):
    """Log-probabilities of given ids `(B, L)` under a model, without a [tokens, vocabulary] tensor."""
    fold_head(model)
    head = read_head(model)

    @torch.no_grad()
    def score(ids, mask):
        ids, mask = ids.to(model.device), mask.to(model.device)
        predicted = mask[:, 1:].bool()
        hidden, _ = completion_hidden_states(model, ids, mask, ids.size(1) - 1, multimodal={})
        log_probs, _ = token_log_probs(hidden[predicted], head, ids[:, 1:][predicted])
        return torch.nn.functional.pad(scatter(log_probs, predicted), (1, 0)).cpu()

    return score
