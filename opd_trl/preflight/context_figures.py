"""Can a student without the privileged context learn what the teacher does with it? Figures and verdicts.

The third failure mechanism of arXiv 2605.11182: a student that does not see the context ends at one policy for all of
them. What the teachers with different contexts have in common it can learn; how they differ stays, whatever is done.

What this does not show. The contexts of other rows stand for those that a row could have had, so the figure is about
prompts that are held out, or seen once. Where the context is a function of its prompt (as a solution is of its task) a
student that sees the same prompts many times can learn each by heart, and its divergence on them falls below the
irreducible part. And a student that can compute that function can learn it; but that is then the task itself.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..losses.spread import pseudo_values
from .clustered import WIDTH, Estimate, mean_of, ratio
from .findings import NOTHING_TO_LEARN, OURS, PAPER, Finding


# Share of the divergence that no student without the context can remove. The paper says which contexts fail, and gives
# no figure. Below a fifth the teachers of different rows want nearly the same of the student; from a half on more of
# the divergence pulls from row to row in other directions than in one that all share.
SHARED_RULE, PER_INSTANCE = 0.2, 0.5
# A context belongs to its row where it beats other rows' by more standard errors than this.
BEYOND_CHANCE = 2.0
# Median tokens of a context below which it says too little of its prompt for the prompt alone to show that.
TOO_SHORT = 8


EMPTY_REMEDY = "privileged_context or privileged_builder: one that changes what the teacher says"
REMEDY = (
    "one rule for all rows (privileged_context), or SFT or rewards (reward_funcs) in place of this loss; several "
    "contexts per prompt do not help. Only where the student can work the context out from the prompt, go on"
)
ROWS_REMEDY = "privileged_context_column: look at some rows of it beside their prompts"


class Quarter(NamedTuple):
    """One quarter of the completions: nats a token, and the share that cannot be learned."""

    total: float
    irreducible: float
    share: float


@dataclass(frozen=True)
class ContextTokens:
    """N tokens of the student's under K prompts, scored by the teacher with n contexts; on the CPU.

    Attributes:
        per_context: `(N, n)`, nats; the row's own context first.
        irreducible, irreducible_without: `(N,)` and `(N, n)`, of `losses.spread.Spread`.
        empty: `(N,)`, the divergence to the teacher without the context.
        alone: `(N,)`, with the context and without the question; None where that cannot be worded.
        moved: `(N,)`, between the teacher without and with the row's own context.
        quarter: `(N,)` int64, 0 to 3.
        prompt: `(N,)` int64, 0 to K - 1.
        contexts: `(K, n)` int64, whose context stands in each column: k in the first.
    """

    per_context: Tensor
    irreducible: Tensor
    irreducible_without: Tensor
    empty: Tensor
    alone: Tensor | None
    moved: Tensor
    quarter: Tensor
    prompt: Tensor
    contexts: Tensor


@dataclass(frozen=True)
class ContextFigures:
    """The privileged-context test in figures; divergences in nats a token.

    Attributes:
        divergence: which one.
        is_shared: do all rows have the same context?
        prompts, tokens: K and N.
        contexts: n, the own one included.
        own, other, empty, alone: between the student and the teacher with the row's own context, with another row's,
            without one, with the context and without the question. None where there is none.
        moved: between the teacher without and with the own context: what the context does.
        total: mean over the n contexts; `learnable` + `irreducible`.
        share: irreducible / total.
        sampling_error: standard error of `share` from having drawn n contexts; part of `share.error`. None for n < 3.
        quarters: along the completions.
        context_length: median tokens of a context.
        prompt_gain: how much likelier the own context makes the prompt than another row's does, nats per token of it.
        answer_gain: the same of the row's answer after the prompt with the context.
    """

    divergence: str
    is_shared: bool
    prompts: int
    tokens: int
    contexts: int
    own: Estimate
    other: Estimate | None
    empty: Estimate
    alone: Estimate | None
    moved: Estimate
    total: Estimate
    learnable: Estimate
    irreducible: Estimate
    share: Estimate
    sampling_error: float | None
    quarters: list[Quarter]
    context_length: float
    prompt_gain: Estimate | None = None
    answer_gain: Estimate | None = None


def context_figures(
    tokens: ContextTokens,
    *,
    divergence: str,
    context_length: float,
    prompt_gains: Tensor | None = None,
    answer_gains: Tensor | None = None,
) -> ContextFigures:
    """From per-token tensors to figures.

    Args:
        tokens: of all rollouts.
        divergence: its name.
        context_length: median tokens of a context.
        prompt_gains, answer_gains: `(m,)` with one value per prompt, see `ContextFigures`.

    Raises:
        ValueError: fewer than two prompts with a token: nothing is known of the next one.
    """
    n = tokens.per_context.size(1)
    sums = Sums(tokens)
    if int((sums.count > 0).sum()) < 2:
        raise ValueError(
            "the privileged-context test needs tokens of at least 2 prompts. Raise --prompts, and look whether the "
            "student's completions are empty."
        )
    total = sums.of(tokens.per_context)
    irreducible = pseudo_values(sums.of(tokens.irreducible[:, None]).squeeze(1), sums.of(tokens.irreducible_without))
    share, sampling_error = ratio(irreducible, total, tokens.contexts)

    def mean(values: Tensor, contexts: Tensor | None = None) -> Estimate:
        return ratio(values, sums.count[:, None].expand_as(values), contexts)[0]

    def plain(values: Tensor) -> Estimate:
        return mean(sums.of(values.reshape(len(values), -1)).mean(1, keepdim=True))

    return ContextFigures(
        divergence=divergence,
        is_shared=n == 1,
        prompts=len(tokens.contexts),
        tokens=len(tokens.prompt),
        contexts=n,
        own=plain(tokens.per_context[:, 0]),
        other=plain(tokens.per_context[:, 1:]) if n > 1 else None,
        empty=plain(tokens.empty),
        alone=None if tokens.alone is None else plain(tokens.alone),
        moved=plain(tokens.moved),
        total=mean(total, tokens.contexts),
        learnable=mean(total - irreducible, tokens.contexts),
        irreducible=mean(irreducible, tokens.contexts),
        share=share,
        sampling_error=sampling_error,
        quarters=quarters(tokens),
        context_length=context_length,
        prompt_gain=mean_of(prompt_gains),
        answer_gain=mean_of(answer_gains),
    )


class Sums:
    """Sums of per-token values over the tokens of each prompt, `(N, m)` to `(K, m)` in float64."""

    def __init__(self, tokens: ContextTokens):
        self.prompt, self.size = tokens.prompt, len(tokens.contexts)
        self.count = self.of(torch.ones(len(self.prompt), 1)).squeeze(1)

    def of(self, values: Tensor) -> Tensor:
        zeros = torch.zeros(self.size, values.size(1), dtype=torch.float64)
        return zeros.index_add_(0, self.prompt, values.double())


def quarters(tokens: ContextTokens) -> list[Quarter]:
    """Figures by quarter of the completions; one without a token repeats the one before."""
    found: list[Quarter] = []
    for quarter in range(4):
        at = tokens.quarter == quarter
        if not at.any():
            found += found[-1:] or [Quarter(0.0, 0.0, 0.0)]
            continue
        total = tokens.per_context[at].double().mean().item()
        spread = pseudo_values(tokens.irreducible[at].double(), tokens.irreducible_without[at].double()).mean().item()
        found.append(Quarter(total, spread, spread / total if total > 0 else 0.0))
    return found


def judge(figures: ContextFigures) -> tuple[str, str]:
    """Can a student without the context learn it? A verdict (`ok`, `fix` or `stop`) and one sentence.

    A small share alone makes no shared rule. Where each row is given its own answer, most of what moves the teacher
    can be the builder's wording, which is the same for all rows: the student learns that, and no answer. So contexts
    that tell something of their own rows are never called a shared rule.
    """
    if does_nothing(figures):
        return "stop", (
            "The context does not change the teacher: with it and without it the distributions are the same "
            f"({figures.moved.value:.1e} nats a token)."
        )
    if figures.is_shared:
        return "ok", "Shared rule: can be internalised. All rows have the same context, so their teachers agree."
    share, low, high = (min(max(x, 0.0), 1.0) for x in (figures.share.value, figures.share.low, figures.share.high))
    interval = f"{share:.0%} of the signal (95 % interval {low:.0%} to {high:.0%})"
    if share < SHARED_RULE and not tells_rows(figures):
        return "ok", f"Shared rule: can be internalised. Only {interval} differs from row to row."
    if share < SHARED_RULE:
        return "fix", (
            f"Differs per instance: {interval} cannot be learned, and in it lies what each context tells of its own "
            "row; what can be learned is what all contexts, and the wording around them, have in common."
        )
    word = "stop" if low >= PER_INSTANCE else "fix"
    return word, f"Differs per instance: {interval} cannot be learned by a student that does not see the context."


def judge_rows(figures: ContextFigures) -> tuple[str, str] | None:
    """Do the contexts belong to their rows? A verdict and one sentence; None where all rows share one.

    A row's own context makes its question, or its answer, likelier than another row's context does. Two things escape
    this: contexts of a few tokens with no column `answer` beside them, and answers that were shuffled together with
    the contexts, which only the question can show.
    """
    gains = {"question": figures.prompt_gain, "answer": figures.answer_gain}
    known = {name: gain for name, gain in gains.items() if gain is not None}
    if figures.is_shared or not known:
        return None
    shown = ", ".join(f"{name} {gain.value:+.3f} ± {gain.error:.3f}" for name, gain in known.items())
    if tells_rows(figures):
        return "ok", f"The contexts belong to their rows, each telling more of its own than another's ({shown})."
    if figures.answer_gain is None and figures.context_length < TOO_SHORT:
        return "ok", f"The contexts are too short to see whether they belong to their rows ({shown} nats a token)."
    either = " Where all contexts word one rule, it does not matter." if figures.share.value < SHARED_RULE else ""
    return "fix", (
        "The contexts do not belong to their rows: each tells no more of its own row than of another "
        f"({shown} nats a token). Is the column shuffled?{either}"
    )


def tells_rows(figures: ContextFigures) -> bool:
    """Does a context tell more of its own row than of another, beyond chance?"""
    gains = (figures.prompt_gain, figures.answer_gain)
    return any(gain is not None and gain.value > BEYOND_CHANCE * gain.error for gain in gains)


def does_nothing(figures: ContextFigures) -> bool:
    """Does the teacher say the same with and without the context?"""
    return figures.moved.value < NOTHING_TO_LEARN


def findings_of(figures: ContextFigures) -> list[Finding]:
    """Both verdicts as a pre-flight shows them, each with its figure, threshold and remedy."""
    word, sentence = judge(figures)
    if does_nothing(figures):
        name, change, value = "what it changes", EMPTY_REMEDY, figures.moved.value
        figure, threshold = f"{value:.1e} nats a token", f"above {NOTHING_TO_LEARN} ({OURS})"
    else:
        name, change, (value, error) = "share that cannot be learned", "" if word == "ok" else REMEDY, figures.share
        figure = f"{value:.0%} ± {WIDTH * error:.0%} of {figures.total.value:.4f} nats a token"
        threshold = f"hopeless from {PER_INSTANCE:.0%} ({OURS}; mechanism 3, {PAPER})" if word != "ok" else ""
    found = [Finding(name, word, figure, sentence, threshold, change, value)]
    rows = judge_rows(figures)
    if rows is not None:
        word, sentence = rows
        gain = max((x for x in (figures.prompt_gain, figures.answer_gain) if x is not None), key=lambda x: x.value)
        figure, threshold = f"{gain.value:+.3f} nats a token", f"above {BEYOND_CHANCE:g} standard errors ({OURS})"
        change = "" if word == "ok" else ROWS_REMEDY
        found.append(Finding("belongs to its row", word, figure, sentence, threshold, change, gain.value))
    return found
