"""Is a mathematical answer right? By math-verify, in processes that may be ended."""

import re
from typing import Any

from .judge import shared_judge


# Of a text that math-verify reads.
MAX_CHARS = 10_000


def math_accuracy(completions: list, answer: list[str], **kwargs: Any) -> list[float | None]:
    r"""1.0 where the completion's LaTeX answer (its last `\boxed{...}`) equals the row's, 0.0 where it does not.

    A reward function for `reward_funcs`; also a measure by itself. It needs `math-verify`. A comparison that does not
    end within its limit ([`Judge`]) gives 0.0.

    Args:
        completions: one text, or list of one message, per row.
        answer: the right answers: a number, LaTeX, or a solution that ends in `#### answer` as in GSM8K.
        kwargs: other columns of the batch, not used.

    Returns:
        per row 1.0 or 0.0, or None where `answer` cannot be parsed (TRL leaves such a row out).

    Source: the rules of parsing are those of `trl.rewards.accuracy_reward`.

    Example:
        >>> math_accuracy([r"So it is \boxed{1/2}.", r"\boxed{7}"], ["0.5", "so 3 + 5 = 8\n#### 8"])
        [1.0, 0.0]
    """
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    golds = [from_last_box(as_solution(gold)) for gold in answer]
    verdicts = shared_judge().compare(map(from_last_box, texts), golds)
    return [None if verdict.correct is None else float(verdict.correct) for verdict in verdicts]


def from_last_box(text: str) -> str:
    """A text from its last box on, which is the answer where several are given; without a box its end."""
    start = text.rfind(r"\boxed")
    return text[-MAX_CHARS:] if start < 0 else text[start : start + MAX_CHARS]


def as_solution(answer: str) -> str:
    r"""A right answer as math-verify finds it: in a box, unless it marks its own place.

    An escaped dollar sign is one of currency.

    >>> as_solution("3 + 5 = 8\n#### 8"), as_solution(r"Thus \boxed{8}."), as_solution("8")
    ('\\boxed{8}', 'Thus \\boxed{8}.', '\\boxed{8}')
    """
    answer = str(answer).rsplit("####", 1)[-1].strip()
    return answer if "boxed" in answer or re.search(r"(?<!\\)\$", answer) else rf"\boxed{{{answer}}}"
