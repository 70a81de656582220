"""Teacher traces that are fit for supervised training: finished, with an answer, and not going round in circles."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.boxes import last_boxed_answer
from ..evaluation.graded import graded_text
from .files import DataError, Row, unwritable


#: `(texts, right answers) -> 1.0, 0.0 or None` per row, e.g. `opd_trl.evaluation.math_accuracy`.
Judge = Callable[[list[str], list[str]], list[float | None]]
_BASE = np.uint64(6364136223846793005)


@dataclass(frozen=True)
class TraceFilter:
    """Which texts of a teacher are unfit for supervised training.

    Args:
        line_chars, line_repeats: a line of at least so many characters that occurs at least so often.
        block_chars, block_repeats: any stretch of so many characters that occurs at least so often, nowhere
            overlapping itself.
        need_box: reject where there is no boxed answer.
        max_chars: reject longer texts; None takes any length.

    Source: arXiv 2605.11182: no boxed answer; repeated lines of at least 20 characters, at least 5 times; repeated
    blocks of 100 characters. It gives no number of times for blocks: here it is that of lines.
    """

    line_chars: int = 20
    line_repeats: int = 5
    block_chars: int = 100
    block_repeats: int = 5
    need_box: bool = True
    max_chars: int | None = None

    def reason(self, text: str) -> str | None:
        r"""Why a text is rejected, or None.

        Example:
            >>> keep = TraceFilter()
            >>> keep.reason(r"2 + 2 = 4. \boxed{4}") is None, keep.reason("2 + 2 = 4.")
            (True, 'no box')
            >>> keep.reason("Let me check this again.\n" * 5 + r"\boxed{4}")
            'repeated line'
        """
        if not text.strip():
            return "empty"
        if self.max_chars is not None and len(text) > self.max_chars:
            return "too long"
        if repeated_line(text, min_chars=self.line_chars, times=self.line_repeats):
            return "repeated line"
        if repeated_block(text, block_chars=self.block_chars, times=self.block_repeats):
            return "repeated block"
        return last_boxed_answer(text).reason if self.need_box else None


def repeated_line(text: str, *, min_chars: int = 20, times: int = 5) -> bool:
    r"""Does a line of at least `min_chars` characters, blanks around it aside, occur `times` times or more?

    >>> repeated_line("wait, is that right at all?\n" * 5), repeated_line("yes\n" * 50)
    (True, False)
    """
    lines = Counter(line for line in map(str.strip, text.splitlines()) if len(line) >= min_chars)
    return any(count >= times for count in lines.values())


def repeated_block(text: str, *, block_chars: int = 100, times: int = 5) -> bool:
    r"""Does any stretch of `block_chars` characters occur `times` times or more, at places that do not overlap?

    Every stretch gets a hash in one pass ($h_i = \sum_j c_{i+j} B^{j}$ modulo $2^{64}$, by differences of a running
    sum); only stretches that share a hash often enough are compared as text. Ten million characters take a few
    seconds.

    >>> varied = "".join(f"{i} squared is {i * i}. " for i in range(99))
    >>> repeated_block("so we have x = 1. " * 40), repeated_block(varied)
    (True, False)
    """
    if len(text) < block_chars * times:
        return False
    hashes = _hashes(text, block_chars)
    # Most texts have no hash that often, and sorting values is cheaper than sorting positions.
    ordered = np.sort(hashes)
    often = np.unique(ordered[times - 1 :][ordered[times - 1 :] == ordered[: len(ordered) - times + 1]])
    if len(often) == 0:
        return False
    positions = np.flatnonzero(np.isin(hashes, often, kind="sort"))  # 64-bit hashes: the default fails in numpy 2.0.0
    positions = positions[np.argsort(hashes[positions], kind="stable")]
    groups = np.split(positions, np.flatnonzero(np.diff(hashes[positions])) + 1)
    return any(_apart(text, group, block_chars, times) for group in groups)


def _hashes(text: str, width: int) -> np.ndarray:
    """The hash of the stretch of `width` characters that starts at each place."""
    # Odd multipliers have inverses modulo 2^64, so that the power of a stretch's place divides out.
    inverse = np.uint64(pow(int(_BASE), -1, 2**64))
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64) + np.uint64(1)
    running = np.zeros(len(text) + 1, dtype=np.uint64)
    np.cumsum(codes * _powers(_BASE, len(text)), out=running[1:])
    return (running[width:] - running[:-width]) * _powers(inverse, len(text) - width + 1)


def _powers(base: np.uint64, count: int) -> np.ndarray:
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _apart(text: str, positions: np.ndarray, width: int, times: int) -> bool:
    """Do `times` of the positions, each `width` from the one before, start with the same text as the first of them?"""
    first, found, free_from = int(positions[0]), 0, 0
    block = text[first : first + width]
    for position in positions.tolist():
        if position >= free_from and text.startswith(block, position):
            found, free_from = found + 1, position + width
            if found == times:
                return True
    return False


def filter_rows(
    rows: Iterable[Row],
    rule: TraceFilter,
    *,
    judge: Judge | None = None,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[list[Row], dict[str, Any]]:
    """The traces that pass a filter and, with a judge, have the right answer.

    Args:
        rows: with `completion` (text, or messages of which the assistant's are read), and `answer` where there is a
            judge. A true `truncated` rejects the row.
        rule: the filter.
        judge: tells right from wrong answers; None does not ask.
        batch_size: rows judged together.
        progress: called with the number of rows seen after each batch.

    Returns:
        the rows that pass, in their order, and a report: read, kept, rejected by reason.

    Raises:
        DataError: no row passes, or a row lacks a column.
    """
    kept: list[Row] = []
    reasons: Counter[str] = Counter()
    read = 0
    rows = iter(rows)
    while batch := list(itertools.islice(rows, batch_size)):
        verdicts = [_reason(row, rule, number) for number, row in enumerate(batch, start=read + 1)]
        if judge is not None:
            _judge(batch, verdicts, judge, first=read + 1)
        read += len(batch)
        kept += [row for row, reason in zip(batch, verdicts, strict=True) if reason is None]
        reasons.update(reason for reason in verdicts if reason is not None)
        progress(read)
    report = {"read": read, "kept": len(kept), "rejected": dict(reasons.most_common())}
    if not kept:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise DataError(
            f"no trace of {read} passes ({counts or 'the file has none'}). Write others, or loosen the filter."
        )
    return kept, report


def completion_text(row: Row, number: int) -> str:
    """What the assistant wrote in a row; raises DataError where there is no completion."""
    completion = row.get("completion")
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and all(isinstance(turn, dict) and "role" in turn for turn in completion):
        return "\n".join(graded_text([turn]) for turn in completion if turn["role"] == "assistant")
    raise DataError(
        f"row {number} has no `completion` (text or messages), it has {', '.join(map(repr, row))}. Give traces as "
        "`opd-trl data traces` writes them."
    )


def _reason(row: Row, rule: TraceFilter, number: int) -> str | None:
    text = completion_text(row, number)
    if unfit := unwritable(row):
        raise DataError(f"row {number}: {unfit}. Leave the column out of the file.")
    return "truncated" if row.get("truncated") else rule.reason(text)


def _judge(batch: list[Row], verdicts: list[str | None], judge: Judge, *, first: int) -> None:
    """Set the verdict of those rows that passed so far and whose answer is wrong."""
    asked = [i for i, reason in enumerate(verdicts) if reason is None]
    for i in asked:
        if batch[i].get("answer") in (None, ""):
            raise DataError(
                f"row {first + i} has no `answer` to check the trace against. Leave --check-answer out, or add one."
            )
    texts = [graded_text(batch[i]["completion"]) for i in asked]
    for i, right in zip(asked, judge(texts, [batch[i]["answer"] for i in asked]), strict=True):
        if right is None:
            verdicts[i] = "answer of the row cannot be read"
        elif right < 1:
            verdicts[i] = "wrong answer"
