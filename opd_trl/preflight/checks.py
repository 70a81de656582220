"""The list of checks: what a pre-flight asks, in the order in which it runs and shows them. Without torch.

One more check is one more file and one more line here: the help, the runner and the card go through this list.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .findings import Finding, advice


if TYPE_CHECKING:
    from rich.console import RenderableType

    from .state import Preflight


@dataclass(frozen=True)
class Check:
    """One check. Its file is imported when it runs, since that loads torch and the help must not wait for it.

    Attributes:
        name: as the help, the findings and the JSON call it.
        title: what the card prints above its findings.
        about: what it asks, for the help.
        module: its file in this folder. `run(preflight)` in it returns findings, and may leave further figures in
            `preflight.details`; ValueError says that it cannot run here. `table(figures)`, where there is one, makes
            what the card shows above the findings out of the JSON, or None.
        section: the check whose findings its own join on the card and in the JSON; None: they stand alone.
    """

    name: str
    title: str
    about: str
    module: str
    section: str | None = None

    def run(self, preflight: "Preflight") -> list[Finding]:
        """Its findings, or a single one that says why it could not run."""
        try:
            found = self._load().run(preflight)
        except ValueError as error:
            return [Finding(self.name, "not run", "", str(error), section=self.name)]
        args = preflight.trainer.args
        return [
            finding._replace(section=self.section or self.name, change=advice(finding.change, args))
            for finding in found
        ]

    def table(self, figures: dict[str, Any]) -> "RenderableType | None":
        """What the card shows above its findings; `figures` are those of the whole pre-flight, as in the JSON."""
        make = getattr(self._load(), "table", None)
        return None if make is None else make(figures)

    def _load(self) -> ModuleType:
        return importlib.import_module(f"{__package__}.{self.module}")


CHECKS = (
    Check(
        "templates",
        title="Templates",
        about="what both models read, side by side, with the first token that is learned; EOS, padding, thinking, "
        "lengths; is the privileged context whole?",
        module="templates",
    ),
    Check(
        "prefixes",
        title="Teacher on student prefixes (mechanism 1)",
        about="does the teacher make sense of what the student writes? divergence, overlap, entropy by quarter of the "
        "answer",
        module="prefixes",
    ),
    Check(
        "coverage",
        title="Coverage",
        about="does the teacher want tokens that the student never gives, so that reverse KL cannot find them?",
        module="coverage",
    ),
    Check(
        "answers",
        title="Answers",
        about="the teacher's own answers against what it makes of half of the student's (with --rule, or with "
        "reward_funcs: [math_accuracy] and a column answer); would the student write them?",
        module="teacher_answers",
        section="prefixes",
    ),
    Check(
        "loss",
        title="Loss (mechanism 2)",
        about="does the loss rest at the teacher? the rows of `opd-trl verify-loss`",
        module="loss",
    ),
    Check(
        "context",
        title="Privileged context (mechanism 3)",
        about="the PI test: which part of the signal differs from row to row and cannot be learned without the "
        "context?",
        module="context_check",
    ),
    Check("cost", title="Cost", about="seconds of a step by phase, peak memory", module="cost"),
    Check(
        "ranking",
        title="Teachers, the best overlap first",
        about="which teacher to take, where --teacher names some",
        module="ranking",
    ),
)
