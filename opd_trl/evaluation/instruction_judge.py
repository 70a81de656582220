"""Judge the instructions of many answers, each within a time limit."""

from typing import Any

from . import instructions
from .instructions import Followed, instruction_names
from .limited import LimitedCalls
from .math import TIME_LIMIT


class InstructionJudge:
    """Judges IFEval's instructions within a limit; an answer that overruns it follows nothing.

    Args:
        workers: processes.
        time_limit: seconds of CPU time for one answer.

    Raises:
        ImportError: if-verifiable is not installed.
    """

    def __init__(self, *, workers: int = 2, time_limit: float = TIME_LIMIT) -> None:
        instruction_names()
        hello = {"prompt": "Hi", "instruction_ids": ["punctuation:no_comma"], "kwargs": [{}], "answer": "Hello"}
        file, name = instructions.__file__, "follow_instructions"
        self._calls = LimitedCalls(file, name, hello, workers=workers, time_limit=time_limit)

    def __call__(self, tasks: list[dict[str, Any]]) -> list[tuple[Followed, str | None]]:
        """What each answer follows, and "timeout" or "crash" where it could not be judged.

        Args:
            tasks: the arguments of [`follow_instructions`], by name.
        """
        outcomes = zip(tasks, self._calls(tasks), strict=True)
        return [
            (Followed(*outcome.result) if outcome.failure is None else follows_nothing(task), outcome.failure)
            for task, outcome in outcomes
        ]

    def close(self) -> None:
        """End the processes that judge."""
        self._calls.close()


def follows_nothing(task: dict[str, Any]) -> Followed:
    """What is noted of an answer that could not be judged: it follows none of the task's instructions."""
    none = [False] * len(task["instruction_ids"])
    return Followed(none, none)
