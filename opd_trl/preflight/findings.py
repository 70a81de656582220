"""What a check of the pre-flight says of a figure: its verdict, a sentence, and the line of the recipe to change.

No torch in here: the list of checks reads it, and the help reads that.
"""

from collections.abc import Sequence
from typing import NamedTuple


PAPER = "arXiv 2605.11182"
OURS = "ours"

# Nats per token below which two models give the same distributions but for rounding to 16 bits.
NOTHING_TO_LEARN = 1e-3


class Finding(NamedTuple):
    """One figure of a pre-flight and what it means.

    Attributes:
        name: of the figure.
        verdict: `ok`, `fix` (it will cost quality), `stop` (it cannot work) or `not run`.
        figure: as it is shown.
        sentence: what it means.
        threshold: as it is shown, with its source.
        change: the line of the recipe to change, or what to do.
        value: the figure as a number, where it is one.
        section: under which check it is shown. The check that runs sets it, so no file of a check needs to.
    """

    name: str
    verdict: str
    figure: str
    sentence: str
    threshold: str = ""
    change: str = ""
    value: float | None = None
    section: str = ""


def worst(findings: Sequence[Finding]) -> str:
    """The worst verdict among them.

    >>> worst([Finding("a", "ok", "", ""), Finding("b", "fix", "", "")])
    'fix'
    """
    order = ("not run", "ok", "fix", "stop")
    return max((finding.verdict for finding in findings), key=order.index, default="ok")


def number(value: float | None, form: str = ".3f") -> str:
    """A figure in a table, or a dash where there is none.

    >>> number(0.5), number(None)
    ('0.500', '-')
    """
    return "-" if value is None else format(value, form)
