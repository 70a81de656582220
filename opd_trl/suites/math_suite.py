"""`--suite math`: are the answers right?"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..evaluation import Judge, majority, pass_at_k
from ..evaluation.math import UNPARSABLE_GOLD, as_solution
from ..models.sampling import Completion
from .problems import Problem, ProblemSet
from .protocol import Protocol
from .results import Metric, Suite, by_problem, grouped
from .store import Sample


PART = "math"


class MathSuite(Suite):
    """Mathematics, judged by math-verify within the protocol's limits.

    Problems whose own answer cannot be read are named (`say` takes a line), left out and counted.
    """

    def __init__(self, problems: ProblemSet, protocol: Protocol, say: Callable[[str], None] = print) -> None:
        self.judge_answers = Judge(time_limit=protocol.judge_seconds, max_chars=protocol.max_answer_chars)
        self.protocol = protocol
        golds = [as_solution(problem.answer) for problem in problems.problems]
        verdicts = zip(problems.problems, self.judge_answers.compare(golds, golds), strict=True)
        unfit = [problem for problem, verdict in verdicts if verdict.correct is None]
        self.parts = {PART: problems.without({problem.id: UNPARSABLE_GOLD for problem in unfit})}
        for problem in unfit:
            say(
                f"{problems.source}, row {problem.row}: the right answer {problem.answer!r} cannot be read, so the "
                "problem is left out. Write it as a number or as LaTeX."
            )

    def judge(self, part: str, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[dict[str, Any]]:
        """The fields of `Verdict` for each answer: is its last box the right one?"""
        golds = [as_solution(problem.answer) for problem in problems]
        verdicts = self.judge_answers([completion.text for completion in completions], golds)
        return [verdict._asdict() for verdict in verdicts]

    def metrics(self, samples: list[Sample]) -> list[Metric]:
        """avg@n, the share of right samples; pass@k for powers of two; majority@n, the vote of the samples."""
        total, n, groups = self.protocol.samples, self.protocol.n, grouped(samples)
        found = [Metric(f"avg@{total}", by_problem(samples, lambda sample: sample["correct"]), "right answers")]
        for k in sorted({2**i for i in range(1, 12) if 2**i < total} | {total} - {1}):
            values = {
                problem: [float(pass_at_k([sample["correct"] for group in seeds.values() for sample in group], k))]
                for problem, seeds in groups.items()
            }
            found.append(Metric(f"pass@{k}", values, f"at least one of {k} samples is right"))
        if n > 2:
            values = {
                problem: [
                    majority([sample["value"] for sample in group], [sample["correct"] for sample in group])
                    for group in seeds.values()
                ]
                for problem, seeds in groups.items()
            }
            found.append(Metric(f"majority@{n}", values, f"the most frequent of {n} answers is right"))
        return found

    def counts(self, samples: list[Sample]) -> dict[str, int]:
        return dict(Counter(sample["reason"] for sample in samples if sample["reason"]).most_common())

    def close(self) -> None:
        self.judge_answers.close()
