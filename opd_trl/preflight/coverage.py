"""Does the teacher want tokens that the student never gives? A loss on the student's own text may never see them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..losses.divergences import DIVERGENCES, divergence_named
from ..losses.head import Head
from ..losses.next_token import NextToken
from ..models.forward import read_head, token_log_probs, vocabulary_rows
from ..teachers.text_ids import ALONE, LEAST_ALIGNED, SPAN
from ..trainers.looks.rollouts import Rollout, score
from .findings import INFO, OURS, Finding
from .state import Preflight


FINDERS = " or ".join(name for name, entry in DIVERGENCES.items() if entry.finds_missing_modes)
SEES_MODES = f"a forward KL sees them (divergence: {FINDERS}, with loss_support: union)"


def run(preflight: Preflight) -> list[Finding]:
    """Judge the teacher's probability outside the student's TopK, and what of two tokenizers is compared."""
    trainer, args = preflight.trainer, preflight.trainer.args
    findings = judge_alignment(trainer, preflight.rollouts) if trainer.shared_ids.reads_text else []
    if preflight.could_not_run("prefixes"):  # on the same figures: one finding says why for both
        return findings
    figures, sees = preflight.pairs(), finds_missing_modes(args.divergence, args.loss_support)
    outside = figures.outside.mean().item(), figures.by_place("outside")
    return [*findings, coverage(*outside, top_k=args.loss_top_k, sees=sees)]


def coverage(outside: float, by_place: Sequence[float], *, top_k: int, sees: bool) -> Finding:
    """The teacher's probability outside the student's TopK: its mean, and at each of the first positions.

    `sees`: can the loss raise tokens there? A reverse KL hardly can where the student gives them nothing at all, and
    does so in time where it gives them a little: the figure does not decide it.
    """
    place = max(range(len(by_place)), key=by_place.__getitem__, default=0)
    peak = max(by_place, default=0.0)
    figure = f"{outside:.3f} on average, {peak:.3f} at token {place + 1}"
    how = (
        "this loss sees such tokens" if sees else f"tokens that the student never gives this loss misses; {SEES_MODES}"
    )
    sentence = f"What the teacher wants and the student seldom writes: {how}."
    name = f"teacher's mass outside the student's Top-{top_k}"
    return Finding(name, INFO, figure, sentence, value=max(outside, peak))


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
    if trainer.args.loss_support == "sampled":  # which compares texts, and no distributions
        return findings
    masses = torch.cat([mass_in_common(trainer, rollout) for rollout in rollouts], dim=1).mean(-1)
    if masses.isnan().any():
        return findings
    student, teacher = masses.tolist()
    name, figure = "probability compared", f"{student:.1%} of the student's, {teacher:.1%} of the teacher's"
    if min(student, teacher) >= LEAST_ALIGNED:
        sentence = "Where both write one token, the tokens of equal bytes hold most of the probability."
        return [*findings, Finding(name, "ok", figure, sentence, threshold, value=min(student, teacher))]
    sentence = "Where both write one token, most of the probability is on tokens that the other does not have."
    change = ("loss_support: sampled, which compares the text alone", "a teacher with a nearer vocabulary")
    return [*findings, Finding(name, "fix", figure, sentence, threshold, change, min(student, teacher))]


@torch.no_grad()
def mass_in_common(trainer, rollout: Rollout) -> Tensor:
    """Probability `(2, n)` of student and teacher on the tokens of equal bytes, at the n tokens that are one in both.

    It is p(y) over all tokens / p(y) over those of equal bytes, for y among them.
    """
    options, parts = {"temperature": trainer.objective.temperature}, []
    student = read_head(trainer.model).rows(vocabulary_rows(trainer.model.config.get_text_config()))

    def share(read: NextToken, whole: Head, own: Tensor, ids: Tensor) -> Tensor:
        of_all, _ = token_log_probs(read.hidden_states, whole, own, **options)
        of_shared, _ = token_log_probs(read.hidden_states, read.head, ids, **options)
        return (of_all - of_shared).exp()

    for scored in score(trainer, rollout):
        ids, teacher = scored.tokens.ids, trainer.teachers[scored.teacher_name]
        (pair,) = teacher.shared_ids.pairs
        theirs = torch.tensor([pair.same[i] for i in ids.tolist()], dtype=ids.dtype, device=ids.device)
        of_teacher = share(scored.teacher, teacher.head.rows(pair.teacher_rows), theirs, ids)
        parts.append(torch.stack([share(scored.student, student, ids, ids), of_teacher]))
    return torch.cat(parts, dim=1)


def finds_missing_modes(divergence: str, support: str) -> bool:
    """Can the loss raise a token that the student almost never gives?

    In the reverse KL and the JSD every term of the gradient carries the student's probability of its token; the
    forward KL's carries the teacher's, if the support holds the token.

    >>> finds_missing_modes("mixed", "union"), finds_missing_modes("jsd", "full")
    (True, False)
    """
    return divergence_named(divergence).finds_missing_modes and support in ("teacher", "union", "full")
