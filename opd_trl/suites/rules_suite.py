"""`--suite rules`: do the answers follow rules, and do they where they should not?"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..data.files import DataError
from ..evaluation import parse_rule
from ..evaluation.instruction_judge import InstructionJudge
from ..evaluation.instructions import GET_PUNKT, instruction_names, judgeable
from ..models.sampling import Completion
from .problems import Problem, ProblemSet
from .protocol import Protocol
from .results import Metric, Suite, by_problem
from .store import Sample


PART, ELSEWHERE = "rules", "elsewhere"
NO_PUNKT = f"needs NLTK's punkt_tab ({GET_PUNKT})"


class RulesSuite(Suite):
    """Rules by name, and their leakage.

    Args:
        problems: prompts whose answers should follow the rules.
        rules: as on the command line; an answer should follow all of them.
        elsewhere: prompts whose answers should not.
        leak_rules: what counts as leaking there; the rules themselves by default. A looser rule shows more.

    Raises:
        ValueError: an unknown rule.
    """

    def __init__(
        self, problems: ProblemSet, rules: list[str], elsewhere: ProblemSet | None, leak_rules: list[str]
    ) -> None:
        self.rules = {text: parse_rule(text) for text in rules}
        self.leaks = {text: parse_rule(text) for text in leak_rules or rules}
        self.parts = {PART: problems}
        if elsewhere is not None:
            shared = {p.id for p in problems.problems} & {p.id for p in elsewhere.problems}
            if shared:
                raise DataError(
                    f"{len(shared)} prompts stand in both {problems.source} and {elsewhere.source}: a rule cannot be "
                    "right and wrong for the same prompt. Remove them from one."
                )
            self.parts[ELSEWHERE] = elsewhere

    def judge(self, part: str, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[dict[str, Any]]:
        """Which rules each answer follows. A cut answer is judged as it stands."""
        rules = self.leaks if part == ELSEWHERE else self.rules
        return [{"follows": {text: rule(done.text) for text, rule in rules.items()}} for done in completions]

    def metrics(self, samples: list[Sample]) -> list[Metric]:
        """Compliance with all rules and with each, and leakage."""
        here = [sample for sample in samples if sample["part"] == PART]
        there = [sample for sample in samples if sample["part"] == ELSEWHERE]
        found = [
            Metric(
                "compliance", by_problem(here, lambda s: all(s["follows"].values())), "answers that follow every rule"
            )
        ]
        if len(self.rules) > 1:
            for rule in self.rules:
                values = by_problem(here, lambda s, rule=rule: s["follows"][rule])
                found.append(Metric(f"rule {rule}", values, "follow it"))
        if there:
            what = "answers that follow a rule where they should not"
            found.append(Metric("leakage", by_problem(there, lambda s: any(s["follows"].values())), what))
        return found

    def counts(self, samples: list[Sample]) -> dict[str, int]:
        """How often each rule is broken."""
        here = [sample for sample in samples if sample["part"] == PART]
        broken = (f"breaks {rule}" for sample in here for rule, holds in sample["follows"].items() if not holds)
        return dict(Counter(broken).most_common())


class InstructionSuite(Suite):
    """IFEval's instructions, which stand in the rows themselves.

    Args:
        problems: rows with `instruction_id_list` and `kwargs`. Those that this machine cannot judge are left out and
            counted.
        protocol: limits of the judge.

    Raises:
        DataError: a row has no instructions, or one that is not known.
    """

    def __init__(self, problems: ProblemSet, protocol: Protocol) -> None:
        known = set(instruction_names())
        for problem in problems.problems:
            ids = (problem.instructions or {}).get("instruction_ids", [])
            if not ids or not set(ids) <= known or len(ids) != len(problem.instructions["kwargs"]):
                raise DataError(
                    f"{problems.source}: a row has the instructions {ids}, expected instruction_id_list with a kwargs "
                    f"for each, of {', '.join(sorted(known))}. Prompt: {problem.messages[-1]['content'][:80]!r}"
                )
        unfit = {p.id: NO_PUNKT for p in problems.problems if not judgeable(p.instructions["instruction_ids"])}
        self.parts = {PART: problems.without(unfit)}
        self.judge_answers = InstructionJudge(time_limit=protocol.judge_seconds)

    def judge(self, part: str, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[dict[str, Any]]:
        """Which instructions each answer follows, as it is and loosely read, and why it could not be judged."""
        pairs = zip(problems, completions, strict=True)
        tasks = [{"prompt": p.messages[-1]["content"], **p.instructions, "answer": done.text} for p, done in pairs]
        return [{**followed._asdict(), "reason": reason} for followed, reason in self.judge_answers(tasks)]

    def metrics(self, samples: list[Sample]) -> list[Metric]:
        """The share of prompts all of whose instructions are followed, strictly and loosely."""
        return [
            Metric(f"prompts {kind}", by_problem(samples, lambda s, kind=kind: all(s[kind])), f"all followed, {kind}")
            for kind in ("strict", "loose")
        ]

    def counts(self, samples: list[Sample]) -> dict[str, int]:
        """Why answers could not be judged, and how many."""
        return dict(Counter(sample["reason"] for sample in samples if sample["reason"]))

    def figures(self, samples: list[Sample]) -> dict[str, float]:
        """Shares of single instructions that are followed, each weighing the same."""
        flat = {kind: [holds for sample in samples for holds in sample[kind]] for kind in ("strict", "loose")}
        return {f"instructions {kind}": sum(values) / len(values) for kind, values in flat.items()}

    def close(self) -> None:
        self.judge_answers.close()
