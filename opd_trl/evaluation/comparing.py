"""Compare two mathematical texts with math-verify. Runs in a process of its own: see `opd_trl.evaluation.math`."""

from typing import Any


UNPARSABLE, UNPARSABLE_GOLD, DIFFERENT = "unparsable", "unparsable gold", "different"


def compare(answer: str, gold: str, *, well_formed: bool) -> dict[str, Any]:
    r"""Compare an answer to the right one, both texts in which math-verify finds LaTeX.

    Args:
        answer, gold: texts.
        well_formed: an answer like `\frac43`, which prints well but lacks its braces, is a wrong one.

    Returns:
        `correct` (None where the right answer cannot be parsed), `reason` where it is not True, and `value`, the
        answer in one spelling, for votes.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    golds = parse(gold, parsing_timeout=None)
    if not golds:
        return {"correct": None, "reason": UNPARSABLE_GOLD, "value": None}
    options = {"normalization_config": NormalizationConfig(units=True)} if well_formed else {}
    latex = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False, **options)
    answers = parse(answer, extraction_config=[latex], extraction_mode="first_match", parsing_timeout=None)
    if not answers:
        return {"correct": False, "reason": UNPARSABLE, "value": None}
    correct = verify(golds, answers, timeout_seconds=None)
    return {"correct": correct, "reason": None if correct else DIFFERENT, "value": str(answers[0])}
