"""From the rows of a data set to ours: shaped, one answer each, no duplicates, nothing of an evaluation set."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ..evaluation.boxes import single_boxed_answer
from ..evaluation.graded import graded_text
from .adapters import RejectedRow
from .decontaminate import Contamination
from .files import DataError, Row, unwritable
from .prompts import num_bytes
from .splits import prompt_key


@dataclass
class Prepared:
    """The rows that a data set gave, and how many were left out for which reason.

    Args:
        rows: the kept ones, in their order.
        read: how many there were.
        rejected: how many were left out, by reason.
        contaminated: of those that agree with an evaluation set: the row's number, which one, and in which words.
    """

    rows: list[Row] = field(default_factory=list)
    read: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    contaminated: list[dict[str, Any]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """The counts as `NAME.report.json` holds them, ready for JSON."""
        return {
            "read": self.read,
            "kept": len(self.rows),
            "rejected": dict(self.rejected.most_common()),
            "contaminated": self.contaminated,
        }


def prepare(
    rows: Iterable[Row],
    to_row: Callable[[Row], Row],
    *,
    box_column: str | None = None,
    evaluation: Contamination | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Prepared:
    """Shape rows and leave out what may not be trained on.

    Args:
        rows: as the data set has them.
        to_row: an adapter's function.
        box_column: this text (`solution`, `completion`) must have exactly one boxed answer, which becomes
            `answer` where the row has none.
        evaluation: agreeing prompts are left out.
        progress: called with the number of rows read, after each.

    Raises:
        DataError: nothing is left; the reasons are counted in the message.

    Example:
        >>> from opd_trl.data.adapters import mapped
        >>> made = prepare([{"q": "1+1?"}, {"q": " 1+1?"}, {"q": ""}], mapped({"prompt": "q"}))
        >>> made.report()["rejected"]
        {'duplicate prompt': 1, 'empty prompt': 1}
    """
    made, seen, remedies = Prepared(), set(), {}
    for made.read, row in enumerate(rows, start=1):
        try:
            shaped = to_row(row)
            num_bytes(shaped)  # refuses what no file can hold
            if unfit := unwritable(shaped):
                raise RejectedRow(unfit, "Leave it out of --columns.")
            if box_column is not None:
                require_box(shaped, box_column)
            key = prompt_key(shaped["prompt"])
            if key in seen:
                raise RejectedRow("duplicate prompt")
            seen.add(key)
            match = None if evaluation is None else evaluation.match(shaped["prompt"])
            if match is not None:
                made.contaminated.append({"row": made.read, "found_in": match.name, "words": match.words})
                raise RejectedRow("in an evaluation set")
            made.rows.append(shaped)
        except RejectedRow as reason:
            made.rejected[reason.what] += 1
            remedies[reason.what] = reason.remedy
        progress(made.read)
    if not made.rows:
        reasons = made.rejected.most_common()
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons) or "the data set has none"
        remedy = remedies[reasons[0][0]] if reasons else ""
        advice = f"Check the columns and the split, or ask for less. {remedy}".strip()
        raise DataError(f"no row is left of {made.read} ({counts}). {advice}")
    return made


def require_box(row: Row, column: str) -> None:
    r"""Check that a text has exactly one boxed answer, and take it as the row's answer where there is none.

    Raises:
        RejectedRow: no box, several ones that differ, an unclosed, an empty or an over-long one.
        DataError: the row has no such column.

    Example:
        >>> row = {"prompt": "1+1?", "solution": r"It is \boxed{2}."}
        >>> require_box(row, "solution")
        >>> row["answer"]
        '2'
    """
    if column not in row:
        raise DataError(
            f"a boxed answer is asked of {column!r}, which the rows do not have: they have "
            f"{', '.join(map(repr, row))}. Name another one with --require-box, or leave that out."
        )
    answer, reason = single_boxed_answer(graded_text(row[column]))
    if answer is None:
        raise RejectedRow(f"{column}: {reason}")
    row.setdefault("answer", answer)
