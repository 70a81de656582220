"""Does the teacher want tokens that the student never gives? A loss on the student's own text may never see them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..losses.divergences import DIVERGENCES, divergence_named
from ..models.forward import read_head, token_log_probs, vocabulary_rows
from ..teachers.text_ids import ALONE, LEAST_ALIGNED, SPAN
from .findings import OURS, Finding
from .rollouts import Rollout, score
from .state import Preflight


# Teacher's probability outside the student's TopK: as a mean, and at the worst of the first positions.
UNCOVERED, UNCOVERED_AT_ONE_PLACE = 0.2, 0.5

FINDERS = " or ".join(name for name, entry in DIVERGENCES.items() if entry.finds_missing_modes)
MODES_REMEDY = f"divergence: {FINDERS}, with loss_support: union; or SFT on the teacher's text first"


def run(preflight: Preflight) -> list[Finding]:
    """Judge the teacher's probability outside the student's TopK, and what of two tokenizers is compared."""
    trainer, args = preflight.trainer, preflight.trainer.args
    findings = [] if trainer.shared_ids.tokenizer is None else judge_alignment(trainer, preflight.rollouts)
    if preflight.could_not_run("prefixes"):  # on the same figures: one finding says why for both
        return findings
    figures = preflight.pairs()
    return [
        *findings,
        judge_coverage(
            figures.outside.mean().item(),
            figures.by_place("outside"),
            top_k=args.loss_top_k,
            divergence=args.divergence,
            support=args.loss_support,
        ),
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


def judge_alignment(trainer, rollouts: Sequence[Rollout]) -> list[Finding]:
    """How much of the student's tokens, and of both models' probability, does a teacher of another tokenizer see?"""
    batches = [rollout.batch for rollout in rollouts]
    written = sum(int(batch["completion_mask"].sum()) for batch in batches)
    aligned = sum(int((batch[SPAN] >= 0).sum()) for batch in batches) / max(1, written)
    alone = sum(int(batch[ALONE].sum()) for batch in batches) / max(1, written)
    name, figure = "tokens aligned", f"{aligned:.1%} of the student's, {alone:.1%} as one token in both"
    threshold = f"at least {LEAST_ALIGNED:.0%} ({OURS})"
    if aligned < LEAST_ALIGNED:
        sentence = (
            "Most of what the student writes has no loss: the teacher's tokenizer changes it, or does not know it."
        )
        change = "a teacher whose tokenizer gives every text back as it was"
        return [Finding(name, "stop", figure, sentence, threshold, change, aligned)]
    sentence = "Both read the same text up to the end of each of these tokens, or of the span that it is in."
    findings = [Finding(name, "ok", figure, sentence, threshold, value=aligned)]
    masses = torch.cat([mass_in_common(trainer, rollout) for rollout in rollouts], dim=1).mean(-1)
    if masses.isnan().any():
        return findings
    student, teacher = masses.tolist()
    name, figure = "probability compared", f"{student:.1%} of the student's, {teacher:.1%} of the teacher's"
    if min(student, teacher) >= LEAST_ALIGNED:
        sentence = "Where both write one token, the tokens of equal bytes hold most of the probability."
        return [*findings, Finding(name, "ok", figure, sentence, threshold, value=min(student, teacher))]
    sentence = "Where both write one token, most of the probability is on tokens that the other does not have."
    change = "loss_support: sampled, which compares the text alone, or a teacher with a nearer vocabulary"
    return [*findings, Finding(name, "fix", figure, sentence, threshold, change, min(student, teacher))]


@torch.no_grad()
def mass_in_common(trainer, rollout: Rollout) -> Tensor:
    """Probability `(2, n)` of student and teacher on the tokens of equal bytes, at the n tokens that are one in both.

    It is p(y) over all tokens / p(y) over those of equal bytes, for y among them.
    """
    options, parts = {"temperature": trainer.objective.temperature}, []
    for scored in score(trainer, rollout):
        ids = scored.tokens.ids
        theirs = torch.tensor([trainer.shared_ids.same[i] for i in ids.tolist()], dtype=ids.dtype, device=ids.device)
        for model, read, own in (
            (trainer.model, scored.student, ids),
            (trainer.teacher.model, scored.teacher, theirs),
        ):
            whole = read_head(model).rows(vocabulary_rows(model.config.get_text_config()))
            of_all, _ = token_log_probs(read.hidden_states, whole, own, **options)
            of_shared, _ = token_log_probs(read.hidden_states, read.head, ids, **options)
            parts.append((of_all - of_shared).exp())
    return torch.stack(parts)


def finds_missing_modes(divergence: str, support: str) -> bool:
    """Can the loss raise a token that the student almost never gives?

    In the reverse KL and the JSD every term of the gradient carries the student's probability of its token; the
    forward KL's carries the teacher's, if the support holds the token.

    >>> finds_missing_modes("mixed", "union"), finds_missing_modes("jsd", "full")
    (True, False)
    """
    return divergence_named(divergence).finds_missing_modes and support in ("teacher", "union", "full")
