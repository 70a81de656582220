"""What a check of the pre-flight says of a figure: its verdict, a sentence, and the line of the recipe to change.

No torch in here: the list of checks reads it, and the help reads that.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple


INFO = "info"
PAPER = "arXiv 2605.11182"
OURS = "ours"

# Nats per token below which two models give the same distributions but for rounding to 16 bits.
NOTHING_TO_LEARN = 1e-3


class Finding(NamedTuple):
    """One figure of a pre-flight and what it means.

    Attributes:
        name: of the figure.
        verdict: `ok`, `fix` (it will cost quality), `stop` (it cannot work), `info` (worth knowing: runs that worked
            and runs that failed had the same figures, so that it decides nothing) or `not run`.
        figure: as it is shown.
        sentence: what it means.
        threshold: as it is shown, with its source.
        change: the line of the recipe to change, or what to do; several of which one does, as a tuple.
        value: the figure as a number, where it is one.
        section: under which check it is shown. The check that runs sets it, so no file of a check needs to.
    """

    name: str
    verdict: str
    figure: str
    sentence: str
    threshold: str = ""
    change: str | tuple[str, ...] = ""
    value: float | None = None
    section: str = ""


def worst(findings: Sequence[Finding]) -> str:
    """The worst verdict among them.

    >>> worst([Finding("a", "ok", "", ""), Finding("b", "fix", "", "")])
    'fix'
    """
    order = ("not run", INFO, "ok", "fix", "stop")
    return max((finding.verdict for finding in findings), key=order.index, default="ok")


def advice(options: str | Sequence[str], args: Any) -> str:
    """What to change, less what is set already: an option may begin with a field and the value that it should have.

    >>> from types import SimpleNamespace
    >>> args = SimpleNamespace(loss_support="full")
    >>> advice(("loss_support: sampled", "a nearer teacher"), args)
    'loss_support: sampled; or a nearer teacher'
    >>> advice(("loss_support: sampled", "a nearer teacher"), SimpleNamespace(loss_support="sampled"))
    'a nearer teacher'
    """
    options = [options] if isinstance(options, str) else options
    return "; or ".join(option for option in options if not is_set(option, args))


def is_set(option: str, args: Any) -> bool:
    """Does an option ask for a value that a field has already?"""
    found = re.match(r"(\w+): ([\w.]+)", option)
    return found is not None and str(getattr(args, found[1], None)).lower() == found[2].lower()


def number(value: float | None, form: str = ".3f") -> str:
    """A figure in a table, or a dash where there is none.

    >>> number(0.5), number(None)
    ('0.500', '-')
    """
    return "-" if value is None else format(value, form)
