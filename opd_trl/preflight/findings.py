"""What the figures of a pre-flight mean: each gets a verdict, a sentence and the line of the recipe to change."""

from collections.abc import Sequence
from typing import NamedTuple

from ..losses.divergences import DIVERGENCES, divergence_named


PAPER = "arXiv 2605.11182"
OURS = "ours"

# Nats per token below which two models give the same distributions but for rounding to 16 bits.
NOTHING_TO_LEARN = 1e-3


class Finding(NamedTuple):
    """One figure of a pre-flight.

    Attributes:
        section: which part of the pre-flight.
        name: of the figure.
        verdict: `ok`, `fix` (it will cost quality), `stop` (it cannot work) or `not run`.
        figure: as it is shown.
        sentence: what it means.
        threshold: as it is shown, with its source.
        change: the line of the recipe to change, or what to do.
        value: the figure as a number, where it is one.
    """

    section: str
    name: str
    verdict: str
    figure: str
    sentence: str
    threshold: str = ""
    change: str = ""
    value: float | None = None


def worst(findings: Sequence[Finding]) -> str:
    """The worst verdict among them.

    >>> worst([Finding("loss", "a", "ok", "", ""), Finding("loss", "b", "fix", "", "")])
    'fix'
    """
    order = ("not run", "ok", "fix", "stop")
    return max((finding.verdict for finding in findings), key=order.index, default="ok")


def finds_missing_modes(divergence: str, support: str) -> bool:
    """Can the loss raise a token that the student almost never gives?

    In the reverse KL and the JSD every term of the gradient carries the student's probability of its token; the
    forward KL's carries the teacher's, if the support holds the token.

    >>> finds_missing_modes("mixed", "union"), finds_missing_modes("jsd", "full")
    (True, False)
    """
    return divergence_named(divergence).finds_missing_modes and support in ("teacher", "union", "full")


FINDERS = " or ".join(name for name, entry in DIVERGENCES.items() if entry.finds_missing_modes)
MODES_REMEDY = f"divergence: {FINDERS}, with loss_support: union; or SFT on the teacher's text first"
