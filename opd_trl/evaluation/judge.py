r"""Judge mathematical answers, each within a time limit."""

import atexit
import functools
import importlib.util
from collections.abc import Iterable
from typing import NamedTuple

from . import comparing
from .boxes import REASONS as BOX_REASONS
from .boxes import last_boxed_answer
from .comparing import DIFFERENT, UNPARSABLE, UNPARSABLE_GOLD
from .limited import CRASH, TIMEOUT, LimitedCalls, Outcome


#: Why an answer is not right: its box, or what came of comparing it.
REASONS = (*BOX_REASONS, DIFFERENT, UNPARSABLE, TIMEOUT, CRASH, UNPARSABLE_GOLD)
TIME_LIMIT = 5.0


class Verdict(NamedTuple):
    """What came of one answer.

    Args:
        correct: None where the right answer itself cannot be parsed.
        reason: one of `REASONS`; None where the answer is right.
        value: the answer in one spelling, so that equal answers can be counted; None where it could not be parsed.
    """

    correct: bool | None
    reason: str | None
    value: str | None


class Judge:
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
        self._calls = LimitedCalls(comparing.__file__, "compare", one, workers=workers, time_limit=time_limit)

    def __call__(self, answers: Iterable[str], golds: Iterable[str]) -> list[Verdict]:
        r"""Judge the last box of each answer.

        Args:
            answers: a model's texts. One without a closed, filled box is wrong; LaTeX without braces (`\frac43`) is
                read.
            golds: the right answers, see `opd_trl.evaluation.math.as_solution`.
        """
        boxes = [last_boxed_answer(answer, max_chars=self.max_chars) for answer in answers]
        pairs = [(box, gold) for box, gold in zip(boxes, golds, strict=True) if box.reason is None]
        boxed, gold = [rf"\boxed{{{box.answer}}}" for box, _ in pairs], [gold for _, gold in pairs]
        verdicts = iter(self._compare(boxed, gold, well_formed=False))
        return [next(verdicts) if box.reason is None else Verdict(False, box.reason, None) for box in boxes]

    def compare(self, answers: Iterable[str], golds: Iterable[str]) -> list[Verdict]:
        """Judge texts as `trl.rewards.accuracy_reward` reads them: no box is needed, but well-formed LaTeX is."""
        return self._compare(answers, golds, well_formed=True)

    def _compare(self, answers: Iterable[str], golds: Iterable[str], *, well_formed: bool) -> list[Verdict]:
        pairs = zip(answers, golds, strict=True)
        return list(map(_verdict, self._calls({"answer": a, "gold": b, "well_formed": well_formed} for a, b in pairs)))

    def close(self) -> None:
        """End the processes."""
        self._calls.close()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _verdict(outcome: Outcome) -> Verdict:
    return Verdict(**outcome.result) if outcome.failure is None else Verdict(False, outcome.failure, None)


@functools.cache
def shared_judge() -> Judge:
    """The judge of this process, for callers that come again and again, as a reward function does."""
    judge = Judge()
    atexit.register(judge.close)
    return judge
