"""Compare two mathematical texts with math-verify. Runs in a process of its own: see `opd_trl.evaluation.math`."""

from decimal import Decimal
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Eq, Expr, FiniteSet, Float, Interval, Rational, Tuple, UnevaluatedExpr


# Digits that a decimal must share with the other number: behind the point, and of a number below 1 from its first
# digit other than 0 on. So 1e-8 is not 2e-8, and 0.333333 is 1/3.
DIGITS = 6


def compare(answer: str, gold: str, *, well_formed: bool) -> dict[str, Any]:
    r"""Compare an answer to the right one, both texts in which math-verify finds LaTeX.

    Args:
        answer, gold: texts.
        well_formed: an answer like `\frac43`, which prints well but lacks its braces, is a wrong one.

    Returns:
        `correct`, None where the right answer cannot be read, and `value`, the answer in one spelling, for votes; None
        where the answer cannot be read.
    """
    golds = parse(gold, parsing_timeout=None)
    if not golds or isinstance(golds[0], str):  # a text alone: what it means is not known
        return {"correct": None, "value": None}
    options = {"normalization_config": NormalizationConfig(units=True)} if well_formed else {}
    latex = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False, **options)
    answers = parse(answer, extraction_config=[latex], extraction_mode="first_match", parsing_timeout=None)
    if not answers:
        return {"correct": False, "value": None}
    return {"correct": equal(golds, answers), "value": spelling(answers[0])}


def equal(golds: list[Any], answers: list[Any]) -> bool:
    """Does math-verify call them equal, and do their numbers agree in the digits that count?

    math-verify rounds to six digits behind the point, so that all small numbers are one.
    """
    (gold, *others), (answer, *texts) = golds, answers
    gold, answer = as_list(gold, answer), as_list(answer, gold)
    found = [numbers(gold), numbers(answer)]
    if None not in found:
        if sorted(found[0]) != sorted(found[1]):
            return is_percent(gold) != is_percent(answer) and numbers(bare(gold)) == numbers(bare(answer))
        if len(found[0]) == 1 and (gold.has(Float) or answer.has(Float)):
            return True
    return verify([gold, *others], [answer, *texts], timeout_seconds=None)


def as_list(one: Any, other: Any) -> Any:
    """Two numbers in square brackets, which read as an interval, are a list beside something that is one."""
    is_closed = isinstance(one, Interval) and not (one.left_open or one.right_open)
    return Tuple(one.start, one.end) if is_closed and isinstance(other, FiniteSet | Tuple) else one


def numbers(expression: Any) -> list[str] | None:
    """The digits that count of a real number, or of each member of a list; None where something else is among them."""
    members = expression.args if isinstance(expression, FiniteSet | Tuple) else [expression]
    if isinstance(expression, Interval) and expression.is_open:  # (1, 2) is a point as well
        members = expression.args[:2]
    found = [digits(member) for member in members]
    return None if None in found else found


def digits(expression: Any) -> str | None:
    """A real number in the digits that count, and a whole one in all of its digits; None for anything else."""
    if not isinstance(expression, Expr) or not expression.is_number:
        return None
    expression = expression.doit()
    exact = expression.xreplace({part: Rational(str(part)) for part in expression.atoms(Float)})
    if exact.is_Integer:
        return str(exact) if abs(exact) < 10**1000 else hex(exact)  # Python writes no longer ones in decimals
    value = exact.evalf(30)
    if not value.is_Float or not value.is_finite:
        return None
    value = Decimal(str(value))
    if value.adjusted() < 0:
        return str(Decimal(f"{value:.{DIGITS - 1}e}").normalize())
    return f"{value:.{DIGITS}f}".rstrip("0").rstrip(".")


def is_percent(expression: Any) -> bool:
    """Was it written with a percent sign?"""
    return expression.has(UnevaluatedExpr)


def bare(expression: Any) -> Any:
    """A number without its percent sign."""
    return expression.xreplace({UnevaluatedExpr(Rational(1, 100)): Rational(1)})


def spelling(expression: Any) -> str:
    """An answer in one spelling: equal ones count as one in a vote."""
    if isinstance(expression, Eq) and expression.lhs.is_Symbol:
        expression = expression.rhs
    found = numbers(expression)
    if found is None:
        return str(expression)
    return ", ".join(sorted(found) if isinstance(expression, FiniteSet) else found)
