"""What the figures of a pre-flight mean: each gets a verdict, a sentence and the line of the recipe to change."""

from collections.abc import Sequence
from typing import Any, NamedTuple


PAPER = "arXiv 2605.11182"
OURS = "ours"

# Nats per token below which two models give the same distributions but for rounding to 16 bits.
NOTHING_TO_LEARN = 1e-3
# Mean overlap of both TopK sets on the student's text. The paper gives no figure, only that of two teachers of equal
# score the one with the higher overlap teaches better.
LOW_OVERLAP = 0.5
# Overlap in the last quarter of the completions against the first.
OVERLAP_KEPT = 0.8
# Accuracy that a teacher loses when it goes on from half of a student's text. The paper's 14B teacher: 62.1 to 46.0 %.
LOST_BY_PREFIX = 0.10
# Some of these prefixes are wrong already, and no teacher saves them all; so the loss counts where little of the
# teacher's lead over the student is left. Chosen on three seeds of `opd-trl reproduce mechanisms`: docs/evidence.md.
LEAD_LEFT = 0.25
# NLL of the teacher's text under the student, nats a token: .640 before SFT stabilisation, .335 after, in the paper.
FOREIGN_TEXT = 0.5
# Teacher's probability outside the student's TopK: as a mean, and at the worst of the first positions.
UNCOVERED, UNCOVERED_AT_ONE_PLACE = 0.2, 0.5
# Share of completions that are cut off at max_completion_length.
CUT_OFF = 0.5


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
    return divergence in ("forward_kl", "mixed") and support in ("teacher", "union", "full")


MODES_REMEDY = "divergence: forward_kl or mixed, with loss_support: union; or SFT on the teacher's text first"


def judge_divergence(reverse_kl: float, *, own_teacher: bool) -> Finding:
    """Is there anything to learn on the student's own text?"""
    figure, threshold = f"{reverse_kl:.4f} nats a token", f"above {NOTHING_TO_LEARN} ({OURS})"
    if reverse_kl >= NOTHING_TO_LEARN:
        sentence = "Student and teacher differ on the student's own text."
        return Finding("prefixes", "reverse KL", "ok", figure, sentence, threshold, value=reverse_kl)
    sentence = "The teacher gives the student's own distributions: there is nothing to learn."
    change = "privileged_context: one that changes the answers" if own_teacher else "teacher_model_name_or_path"
    return Finding("prefixes", "reverse KL", "stop", figure, sentence, threshold, change, reverse_kl)


def judge_overlap(overlap: float, top_k: int) -> Finding:
    """Do both models hold the same tokens likely where the student writes?"""
    figure, threshold = f"{overlap:.3f}", f"above {LOW_OVERLAP} ({OURS}; the higher the better, {PAPER})"
    name = f"Top-{top_k} overlap"
    if overlap >= LOW_OVERLAP:
        sentence = "Both models hold mostly the same tokens likely on the student's text."
        return Finding("prefixes", name, "ok", figure, sentence, threshold, value=overlap)
    sentence = "On the student's text the teacher holds other tokens likely than the student does."
    change = "a teacher nearer to the student (an RLVR-adapted copy of it), or SFT on the teacher's text first"
    return Finding("prefixes", name, "fix", figure, sentence, threshold, change, overlap)


def judge_drift(overlaps: Sequence[float]) -> Finding:
    """Does the teacher lose its way in what the student has written? Overlap by quarter of the completions."""
    kept = overlaps[-1] / overlaps[0] if overlaps[0] else 1.0
    figure = " > ".join(f"{overlap:.3f}" for overlap in overlaps)
    threshold = f"last quarter at least {OVERLAP_KEPT} of the first ({OURS})"
    if kept >= OVERLAP_KEPT:
        sentence = "The overlap holds to the end of the completions."
        return Finding("prefixes", "overlap by quarter", "ok", figure, sentence, threshold, value=kept)
    sentence = "The overlap falls along the completions: the teacher reads prefixes that it would not write."
    change = "max_completion_length: shorter, or SFT on the teacher's text first, or an RLVR-adapted teacher"
    return Finding("prefixes", "overlap by quarter", "fix", figure, sentence, threshold, change, kept)


def judge_teacher(difference: Any, *, teacher: float, student: float) -> Finding:
    """Is the teacher better than the student? `difference` has `value`, `low` and `high`, in pairs of prompts."""
    figure = f"{teacher:.2f} against {student:.2f}"
    threshold, name = f"better beyond its 95 % interval ({OURS})", "teacher against student"
    if difference.value <= 0:
        sentence = "The teacher answers no better than the student: there is nothing to learn from it."
        change = "another teacher, or a privileged context that helps"
        return Finding("prefixes", name, "stop", figure, sentence, threshold, change, difference.value)
    if difference.low <= 0:
        sentence = (
            f"The teacher looks better, but not beyond chance ({difference.low:+.2f} to {difference.high:+.2f})."
        )
        return Finding("prefixes", name, "fix", figure, sentence, threshold, "--prompts: more", difference.value)
    sentence = "The teacher answers better than the student."
    return Finding("prefixes", name, "ok", figure, sentence, threshold, value=difference.value)


def judge_continuation(difference: Any, *, teacher: float, continued: float, student: float) -> Finding:
    """What is left of the teacher's accuracy when it goes on from half of a student's answer? Mechanism 1.

    Args:
        difference: `continued` minus `teacher`, with `value`, `low` and `high`, in pairs of prompts.
        teacher, continued, student: accuracy of the teacher from scratch, of the teacher from half of the student's
            answers, and of these answers.
    """
    figure = f"{teacher:.2f} from scratch, {continued:.2f} from half of the student's answer ({student:.2f})"
    threshold = (
        f"loses at most {LOST_BY_PREFIX} (14B on 1.7B prefixes: .621 to .460, {PAPER}), or keeps {LEAD_LEFT} of its "
        f"lead over the student ({OURS})"
    )
    name = "teacher on student prefixes"
    if difference.value > -LOST_BY_PREFIX or difference.high >= 0:
        sentence = "The teacher can go on from what the student writes."
        return Finding("prefixes", name, "ok", figure, sentence, threshold, value=difference.value)
    left = (continued - student) / (teacher - student) if teacher > student else 0.0
    if left >= LEAD_LEFT:
        sentence = f"The teacher keeps {left:.0%} of its lead on what the student writes: it can put it right."
        return Finding("prefixes", name, "ok", figure, sentence, threshold, value=difference.value)
    sentence = "On prefixes of the student the teacher does hardly better than the student: its scores there mislead."
    change = "SFT on the teacher's text first, an RLVR-adapted teacher, or distillation_gate: incorrect with rewards"
    return Finding("prefixes", name, "fix", figure, sentence, threshold, change, difference.value)


def judge_traces(nll: float, *, divergence: str, support: str) -> Finding:
    """Would the student write what the teacher writes? NLL of the teacher's own answers under the student."""
    figure = f"{nll:.3f} nats a token"
    threshold = f"below {FOREIGN_TEXT} (.640 before SFT, .335 after, {PAPER})"
    name = "teacher's answers under the student"
    if nll < FOREIGN_TEXT:
        return Finding("prefixes", name, "ok", figure, "The student could write them.", threshold, value=nll)
    if finds_missing_modes(divergence, support):
        sentence = f"The student would hardly write them, but {divergence} on {support} sees the teacher's tokens."
        return Finding("prefixes", name, "ok", figure, sentence, threshold, value=nll)
    sentence = "The student would hardly write them, and this loss learns only from what it writes itself."
    return Finding("prefixes", name, "fix", figure, sentence, threshold, MODES_REMEDY, nll)


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
    name = f"teacher's mass outside the student's Top-{top_k}"
    if outside < UNCOVERED and peak < UNCOVERED_AT_ONE_PLACE:
        sentence = "What the teacher wants, the student already gives some probability."
        return Finding("coverage", name, "ok", figure, sentence, threshold, value=max(outside, peak))
    if finds_missing_modes(divergence, support):
        sentence = f"The teacher wants tokens that the student does not give; {divergence} on {support} finds them."
        return Finding("coverage", name, "ok", figure, sentence, threshold, value=max(outside, peak))
    sentence = "The teacher wants tokens that the student hardly ever gives, and this loss is nearly blind to them."
    return Finding("coverage", name, "fix", figure, sentence, threshold, MODES_REMEDY, max(outside, peak))


def judge_endings(cut_off: float) -> Finding:
    """Do completions end by themselves?"""
    figure, threshold = f"{cut_off:.0%}", f"below {CUT_OFF:.0%} ({OURS})"
    name = "completions cut off"
    if cut_off < CUT_OFF:
        return Finding(
            "templates", name, "ok", figure, "Most completions end by themselves.", threshold, value=cut_off
        )
    if cut_off < 1:
        sentence = "Most completions are cut off before their end, which the student then hardly learns."
        change = "max_completion_length: longer, or mask_truncated_completions: true"
        return Finding("templates", name, "fix", figure, sentence, threshold, change, cut_off)
    sentence = "No completion ends by itself: the student never writes its EOS token."
    change = "max_completion_length: longer; for a base model SFT with the chat template first, so that it learns EOS"
    return Finding("templates", name, "stop", figure, sentence, threshold, change, cut_off)
