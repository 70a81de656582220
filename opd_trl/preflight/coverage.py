"""Does the teacher want tokens that the student never gives? A loss on the student's own text may never see them."""

from collections.abc import Sequence

from ..losses.divergences import DIVERGENCES, divergence_named
from .findings import OURS, Finding
from .state import Preflight


# Teacher's probability outside the student's TopK: as a mean, and at the worst of the first positions.
UNCOVERED, UNCOVERED_AT_ONE_PLACE = 0.2, 0.5

FINDERS = " or ".join(name for name, entry in DIVERGENCES.items() if entry.finds_missing_modes)
MODES_REMEDY = f"divergence: {FINDERS}, with loss_support: union; or SFT on the teacher's text first"


def run(preflight: Preflight) -> list[Finding]:
    """Judge the teacher's probability outside the student's TopK."""
    if preflight.could_not_run("prefixes"):  # on the same figures: one finding says why for both
        return []
    figures, args = preflight.pairs(), preflight.trainer.args
    return [
        judge_coverage(
            figures.outside.mean().item(),
            figures.by_place("outside"),
            top_k=args.loss_top_k,
            divergence=args.divergence,
            support=args.loss_support,
        )
    ]


def judge_coverage(outside: float, by_place: Sequence[float], *, top_k: int, divergence: str, support: str) -> Finding:
    """Does the teacher want tokens that the student never gives?

    Args:
        outside: the teacher's mean probability outside the student's TopK.
        by_place: the same at each of the first positions of a completion.
        top_k, divergence, support: of the loss.
    """
    place = max(range(len(by_place)), key=by_place.__getitem__, default=0)
    peak = max(by_place, default=0.0)
    figure = f"{outside:.3f} on average, {peak:.3f} at token {place + 1}"
    threshold = f"below {UNCOVERED} and {UNCOVERED_AT_ONE_PLACE} ({OURS})"
    name, value = f"teacher's mass outside the student's Top-{top_k}", max(outside, peak)
    if outside < UNCOVERED and peak < UNCOVERED_AT_ONE_PLACE:
        sentence = "What the teacher wants, the student already gives some probability."
        return Finding(name, "ok", figure, sentence, threshold, value=value)
    if finds_missing_modes(divergence, support):
        sentence = f"The teacher wants tokens that the student does not give; {divergence} on {support} finds them."
        return Finding(name, "ok", figure, sentence, threshold, value=value)
    sentence = "The teacher wants tokens that the student hardly ever gives, and this loss is nearly blind to them."
    return Finding(name, "fix", figure, sentence, threshold, MODES_REMEDY, value)


def finds_missing_modes(divergence: str, support: str) -> bool:
    """Can the loss raise a token that the student almost never gives?

    In the reverse KL and the JSD every term of the gradient carries the student's probability of its token; the
    forward KL's carries the teacher's, if the support holds the token.

    >>> finds_missing_modes("mixed", "union"), finds_missing_modes("jsd", "full")
    (True, False)
    """
    return divergence_named(divergence).finds_missing_modes and support in ("teacher", "union", "full")
