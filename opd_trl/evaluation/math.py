"""Is a mathematical answer right? By math-verify, in processes that may be ended."""

import atexit
import contextlib
import functools
import importlib.util
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .boxes import REASONS as BOX_REASONS
from .boxes import last_boxed_answer
from .graded import graded_text
from .limited import CRASH, TIMEOUT, LimitedCalls, Outcome
from .notation import as_latex, plain_answer


logger = logging.getLogger(__name__)

DIFFERENT, UNPARSABLE, UNPARSABLE_GOLD = "different", "unparsable", "unparsable gold"
#: Why an answer is not right: its box, or what came of comparing it.
REASONS = (*BOX_REASONS, DIFFERENT, UNPARSABLE, TIMEOUT, CRASH, UNPARSABLE_GOLD)
TIME_LIMIT = 5.0
# Run in processes of its own: it imports math-verify and sympy, which may not be installed here.
COMPARING = str(Path(__file__).with_name("comparing.py"))


class Verdict(NamedTuple):
    """Whether one answer is right, and why not.

    Args:
        correct: None where the right answer itself cannot be parsed.
        reason: one of `REASONS`; None where the answer is right.
        value: the answer in one spelling, so that equal answers can be counted; None where it could not be parsed.
    """

    correct: bool | None
    reason: str | None
    value: str | None


class Judge(contextlib.AbstractContextManager):
    """Compares answers in processes that are ended when they overrun their limit: such an answer is wrong.

    A context manager; `close` ends the processes.

    Args:
        workers: processes.
        time_limit: seconds of CPU time for one comparison.
        max_chars: a longer boxed answer is wrong ("too long").

    Raises:
        ImportError: math-verify is not installed.

    Example:
        >>> with Judge(workers=1, time_limit=2) as judge:
        ...     verdicts = judge(["\\\\boxed{2/4}", "\\\\boxed{9^{9^{9^9}}}", "It is 7."], ["0.5", "8", "7"])
        >>> [(verdict.correct, verdict.reason) for verdict in verdicts]
        [(True, None), (False, 'timeout'), (False, 'no box')]
    """

    def __init__(self, *, workers: int = 2, time_limit: float = TIME_LIMIT, max_chars: int = 1000) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("judging mathematics needs math-verify: pip install 'opd_trl[math]'.")
        self.max_chars = max_chars
        one = {"answer": r"\boxed{1}", "gold": r"\boxed{1}", "well_formed": False}
        self._calls = LimitedCalls(COMPARING, "compare", one, workers=workers, time_limit=time_limit)

    def __call__(self, answers: Iterable[str], golds: Iterable[str]) -> list[Verdict]:
        r"""Judge the last box of each answer.

        Args:
            answers: a model's texts. One without a closed, filled box is wrong; LaTeX without braces (`\frac43`) is
                read.
            golds: the right answers, see `opd_trl.evaluation.math.as_solution`.
        """
        boxes = [last_boxed_answer(answer, max_chars=self.max_chars) for answer in answers]
        pairs = [(box, gold) for box, gold in zip(boxes, golds, strict=True) if box.reason is None]
        boxed, gold = [in_box(box.answer) for box, _ in pairs], [gold for _, gold in pairs]
        verdicts = iter(self._compare(boxed, gold, well_formed=False))
        return [next(verdicts) if box.reason is None else Verdict(False, box.reason, None) for box in boxes]

    def compare(self, answers: Iterable[str], golds: Iterable[str]) -> list[Verdict]:
        """Judge texts as `trl.rewards.accuracy_reward` reads them: no box is needed, but well-formed LaTeX is."""
        return self._compare(answers, golds, well_formed=True)

    def _compare(self, answers: Iterable[str], golds: Iterable[str], *, well_formed: bool) -> list[Verdict]:
        pairs = zip(answers, golds, strict=True)
        return list(map(_verdict, self._calls({"answer": a, "gold": b, "well_formed": well_formed} for a, b in pairs)))

    def close(self) -> None:
        """End the processes that compare."""
        self._calls.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def _verdict(outcome: Outcome) -> Verdict:
    if outcome.failure is not None:
        return Verdict(False, outcome.failure, None)
    correct, value = outcome.result["correct"], outcome.result["value"]
    if correct is None:
        return Verdict(None, UNPARSABLE_GOLD, None)
    return Verdict(correct, None if correct else UNPARSABLE if value is None else DIFFERENT, value)


@functools.cache
def shared_judge() -> Judge:
    """The judge of this process, for callers that come again and again, as a reward function does."""
    judge = Judge()
    atexit.register(judge.close)
    return judge


# Most characters of a text that math-verify is given to read.
MAX_CHARS = 10_000


def math_accuracy(completions: list, answer: list[Any], **kwargs: Any) -> list[float | None]:
    r"""1.0 where the completion's LaTeX answer (its last `\boxed{...}`) equals the row's, 0.0 where it does not.

    A reward function for `reward_funcs`; also a measure by itself. It needs `math-verify`. A comparison that does not
    end within its limit ([`Judge`]) gives 0.0.

    Args:
        completions: one text, or list of messages, per row; see `opd_trl.evaluation.graded.graded_text`.
        answer: the right answers: a number or a list of them, LaTeX, or a solution that ends in `#### answer` as in
            GSM8K.
        kwargs: other columns of the batch, not used.

    Returns:
        per row 1.0 or 0.0, or None where `answer` cannot be read: TRL leaves such a row out, and a warning names it.

    Source: the rules of parsing are those of `trl.rewards.accuracy_reward`.

    Example:
        >>> math_accuracy([r"So it is \boxed{1/2}.", r"\boxed{7}"], ["0.5", "so 3 + 5 = 8\n#### 8"])
        [1.0, 0.0]
    """
    texts = [from_last_box(graded_text(completion)) for completion in completions]
    golds = [from_last_box(as_solution(gold)) for gold in answer]
    verdicts = shared_judge().compare(texts, golds)
    for gold in {str(gold) for gold, verdict in zip(answer, verdicts, strict=True) if verdict.correct is None}:
        warn_of_unreadable(gold)
    return [None if verdict.correct is None else float(verdict.correct) for verdict in verdicts]


@functools.cache
def warn_of_unreadable(gold: str) -> None:
    """Say once for each right answer that it cannot be read."""
    logger.warning(
        "math_accuracy cannot read the right answer %r: its rows get no reward. Write it as a number or as LaTeX.",
        gold[:200],
    )


def from_last_box(text: str) -> str:
    """A text's last box, which is the answer where several are given; an open box to its end, and without one all."""
    box = last_boxed_answer(text, max_chars=MAX_CHARS)
    if box.answer is not None:
        return in_box(box.answer)
    start = text.rfind(r"\boxed")
    return text[-MAX_CHARS:] if start < 0 else text[start : start + MAX_CHARS]


def in_box(answer: str) -> str:
    """An answer in a box, in LaTeX whatever its notation is."""
    return rf"\boxed{{{as_latex(answer)}}}"


def as_solution(answer: Any) -> str:
    r"""A right answer as math-verify finds it: in a box, unless it marks its own place.

    An escaped dollar sign, and one without its pair, are of currency.

    >>> as_solution("3 + 5 = 8\n#### 8"), as_solution(r"Thus \boxed{8}."), as_solution(2e-3), as_solution("$18")
    ('\\boxed{8}', 'Thus \\boxed{8}.', '\\boxed{0.002}', '\\boxed{18}')
    """
    text = plain_answer(answer)
    if "boxed" in text or re.search(r"(?<!\\)\$[^$]*(?<!\\)\$", text):
        return text
    return in_box(text.lstrip("$"))
