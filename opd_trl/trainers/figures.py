"""The figures of a step, over all its tokens, and the samples of a run."""

from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor

from ..diagnostics import (
    FIGURES,
    TextKind,
    broken_teacher_message,
    divergence_by_teacher,
    dropped_tail_advice,
    position_quartiles,
    repeated_trigrams,
    repetition,
    token_means,
    token_sums,
)
from ..models.sequences import computed_and_real
from ..teachers.scores import Scores
from ..teachers.several.routing import is_routed
from .agents import has_turns, turns_of
from .generation.plans import kind_of


logger = get_logger(__name__)


class StepFigures:
    """The figures of each optimizer step, over all tokens of its micro-batches, into TRL's metrics.

    Args:
        trainer: whose metrics they become.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._step, self._sums = -1, None  # of the micro-batches of this step so far, on this process
        self._may_warn = trainer.objective.drops_tail

    def add(self, stats: dict[str, dict[str, Tensor]], inputs: dict[str, Any], scores: dict[str, Scores]) -> None:
        """Count a micro-batch in, log the step behind its last one, and keep a sample for the run log.

        Micro-batches are cut by length: a mean of their means would weigh the tokens of short completions more.

        Args:
            stats: of each teacher, from the loss.
            inputs, scores: the micro-batch and what the teachers say of it; named where a teacher is broken.

        Raises:
            FloatingPointError: a teacher's figures are not finite.
        """
        trainer = self.trainer
        if any(map(is_broken, stats.values())):
            stop_at_broken_teacher(trainer, inputs, scores)
        kind = kind_of(inputs)
        if trainer.monitor is not None and kind is not TextKind.GIVEN:
            trainer.monitor.take_sample(stats, inputs, scores)
        found = sums_by_teacher(trainer, stats, inputs, scores)
        sums = torch.stack([found if kind is other else torch.zeros_like(found) for other in TextKind])
        if trainer.model.training:
            is_first = self._sums is None or self._step != trainer.state.global_step
            self._step, self._sums = trainer.state.global_step, sums if is_first else self._sums + sums
            if not trainer.accelerator.sync_gradients:
                return
            sums, self._sums = self._sums, None
        self._log(trainer.accelerator.reduce(sums, reduction="sum"))

    def _log(self, sums: Tensor) -> None:
        """Log the means of the sums of all processes, by kind of text; warn once of a dropped tail that is heavy."""
        trainer = self.trainer
        for kind, by_teacher in zip(TextKind, sums, strict=True):
            means = token_means(by_teacher.sum(0))
            if trainer.policy_is_active:
                means.pop("entropy", None)  # GRPO logs it
            if is_routed(trainer.teachers):
                means |= divergence_by_teacher(list(trainer.teachers), by_teacher)
            for name, value in means.items():
                trainer.running_metrics[kind.named(name)].append(value)
            self._warn_of_tail(means)

    def _warn_of_tail(self, means: dict[str, float]) -> None:
        if self._may_warn and "support/student_mass" in means:
            advice = dropped_tail_advice(means["support/student_mass"])
            if advice is not None:
                self._may_warn = False
                logger.warning(advice)


def is_broken(stats: dict[str, Tensor]) -> Tensor:
    """Is something that the teacher says not finite? In a span of several tokens its log-ratio tells."""
    said = torch.where(stats["overlap"].isnan(), stats["sampled_log_ratio"], stats["teacher_mass"])
    return ~said.isfinite().all()


def sums_by_teacher(trainer, stats: dict[str, dict[str, Tensor]], inputs, scores: dict[str, Scores]) -> Tensor:
    """Sum and count of `FIGURES` by teacher `(teachers, figures, 2)`; zeros for one that has no row on this rank."""
    ids, mask, kept = inputs["completion_ids"], inputs["completion_mask"], inputs["loss_mask"].bool()
    repeated = repeated_trigrams(ids, mask)
    by_completion = repetition(repeated, mask)
    turns = turns_of(inputs) if has_turns(trainer) else None
    turn = torch.zeros_like(mask) if turns is None else turns
    by_token = torch.stack([position_quartiles(mask), repeated.long(), turn], dim=-1)  # selected at once
    top_k = min(trainer.args.loss_top_k, trainer.num_rows)
    sums = torch.zeros(len(trainer.teachers), len(FIGURES), 2, device=trainer.accelerator.device)
    for row, name in zip(sums, trainer.teachers, strict=True):
        if name in stats:
            select = scores[name].select
            quartile, is_repeated, turn = select(by_token)[select(kept)].unbind(-1)
            row[:-1] += token_sums(
                stats[name],
                quartile=quartile,
                repeated=is_repeated,
                repetition=select(by_completion),
                top_k=top_k,
                turn=None if turns is None else turn,
                turns=None if turns is None else select(turns).amax(-1),
            )
    sums[0, -1] = computed_and_real(inputs)
    return sums


def stop_at_broken_teacher(trainer, inputs: dict[str, Any], scores: dict[str, Scores]) -> None:
    """Raise FloatingPointError that names the rows in which a teacher's hidden states are not finite."""
    kept = inputs["loss_mask"].bool()
    finite = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
    for teacher in scores.values():
        own = teacher.is_finite(teacher.select(kept))
        finite = own if teacher.rows is None else finite.masked_scatter(teacher.rows, own)
    rows = (~finite).nonzero().flatten().tolist() or list(range(len(finite)))
    prompt = trainer.tokenizer.decode(inputs["prompt_ids"][rows[0]], skip_special_tokens=True)
    raise FloatingPointError(broken_teacher_message(trainer.state.global_step, rows, prompt))


#: Completions per recorded step, and how many of a whole run at most.
PER_STEP, PER_RUN = 2, 200
#: Steps between two that are recorded, at least.
SPACING = 10
#: A character has at most four bytes: longer pieces that do not decode are not text.
MOST_BYTES = 4


def is_recorded(step: int, max_steps: int) -> bool:
    """Is a step one of those whose samples are kept: the first, and every tenth or every so many tens?

    Example:
        >>> [step for step in range(1, 31) if is_recorded(step, max_steps=1000)]
        [1, 10, 20, 30]
        >>> [step for step in range(1, 101) if is_recorded(step, max_steps=5000)]
        [1, 50, 100]
    """
    most = PER_RUN // PER_STEP
    every = SPACING * max(1, -(-max_steps // (SPACING * most)))
    return step == 1 or step % every == 0


def sample_lines(
    trainer, stats: dict[str, dict[str, Tensor]], inputs: dict[str, Any], scores: dict[str, Scores]
) -> list[dict[str, Any]]:
    """The first completions of a micro-batch: lines of `samples.jsonl` without step and session.

    Args:
        trainer: whose tokenizers are asked.
        stats: of each teacher, from the loss.
        inputs: the micro-batch.
        scores: by which teachers its rows are scored.
    """
    mask, kept, tokenizer = inputs["completion_mask"].bool(), inputs["loss_mask"].bool(), trainer.tokenizer
    divergence, log_ratio = (by_token(x, stats, scores, kept) for x in ("per_token_divergence", "sampled_log_ratio"))
    turns, teachers = turns_of(inputs) if has_turns(trainer) else None, [""] * len(kept)
    for name in stats:
        own = scores[name].rows
        teachers = [name if is_own else other for is_own, other in zip(flags(own, len(kept)), teachers, strict=True)]
    lines, reads = [], trainer.teacher_prompts.tokenizer_of
    for row in mask.any(-1).nonzero().flatten()[:PER_STEP].tolist():
        ids = inputs["completion_ids"][row][mask[row]].tolist()
        lines.append(
            {
                "prompt": prompt_text(tokenizer, inputs, row, ""),
                "teacher_prompt": prompt_text(reads(inputs, row), inputs, row, "teacher_"),
                "tokens": token_texts(tokenizer, ids),
                "divergence": rounded(divergence[row][mask[row]]),
                "log_ratio": rounded(log_ratio[row][mask[row]]),
                "teacher": teachers[row],
            }
            | ({} if turns is None else {"turn": turns[row][mask[row]].tolist()})
        )
    return lines


def by_token(name: str, stats: dict[str, dict[str, Tensor]], scores: dict[str, Scores], kept: Tensor) -> Tensor:
    """A figure of the loss where it was found: `(B, T)`, NaN where no token of `kept` `(B, T)` is."""
    found = torch.full(kept.shape, torch.nan, device=kept.device)
    for teacher, figures in stats.items():
        own = scores[teacher].rows
        found[kept if own is None else kept & own.unsqueeze(-1)] = figures[name].float()
    return found


def flags(rows: Tensor | None, count: int) -> list[bool]:
    return [True] * count if rows is None else rows.tolist()


def prompt_text(tokenizer, inputs: dict[str, Any], row: int, prefix: str) -> str | None:
    """A prompt as text, special tokens included; None where there is no such prompt."""
    if f"{prefix}prompt_ids" not in inputs:
        return None
    shown = inputs[f"{prefix}prompt_mask"][row].bool()
    return tokenizer.decode(inputs[f"{prefix}prompt_ids"][row][shown].tolist(), skip_special_tokens=False)


def token_texts(tokenizer, ids: list[int]) -> list[str]:
    """The text of each token, which joined are the text of all.

    Each token is read behind the one before it, since many tokenizers drop the space of a first word. A character
    that is spread over several tokens stands with the last of them.

    Args:
        tokenizer: decodes.
        ids: of a completion.
    """
    texts, context, done = [], 0, 0  # ids[context:done] has been shown; what precedes it no longer matters
    for end in range(1, len(ids) + 1):
        before = decode(tokenizer, ids[context:done])
        text = decode(tokenizer, ids[context:end])[len(before) :]
        is_cut = text.endswith("\ufffd") and end - done < MOST_BYTES and end < len(ids)
        texts.append("" if is_cut else text)
        if not is_cut:
            context, done = done, end
    return texts


def decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def rounded(values: Tensor) -> list[float | None]:
    """Numbers with four decimals, None for NaN and infinities."""
    return [round(x, 4) if abs(x) < float("inf") else None for x in values.tolist()]
