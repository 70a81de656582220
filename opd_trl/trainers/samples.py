"""Completions of a micro-batch, token by token, with what the step has found out about each token."""

from typing import Any

import torch
from torch import Tensor

from ..teachers.scores import Scores


#: Completions per recorded step, and how many of a whole run at most.
PER_STEP, PER_RUN = 2, 200
#: Steps between two that are recorded, at least.
SPACING = 10
#: A character has at most four bytes: longer pieces that do not decode are no text.
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
    tokenizer, stats: dict[str, dict[str, Tensor]], inputs: dict[str, Any], scores: dict[str, Scores]
) -> list[dict[str, Any]]:
    """The first completions of a micro-batch: lines of `samples.jsonl` without step and session.

    Args:
        tokenizer: the student's.
        stats: of each teacher, from the loss.
        inputs: the micro-batch.
        scores: by which teachers its rows are scored.
    """
    mask, kept = inputs["completion_mask"].bool(), inputs["loss_mask"].bool()
    divergence, log_ratio = torch.full((2, *kept.shape), torch.nan, device=kept.device)
    teachers = [""] * len(kept)
    for name, figures in stats.items():
        own = scores[name].rows
        at = kept if own is None else kept & own.unsqueeze(-1)
        divergence[at] = figures["per_token_divergence"].float()
        log_ratio[at] = figures["sampled_log_ratio"].float()
        teachers = [name if is_own else other for is_own, other in zip(flags(own, len(kept)), teachers, strict=True)]
    lines = []
    for row in mask.any(-1).nonzero().flatten()[:PER_STEP].tolist():
        ids = inputs["completion_ids"][row][mask[row]].tolist()
        lines.append(
            {
                "prompt": prompt_text(tokenizer, inputs, row, ""),
                "teacher_prompt": prompt_text(tokenizer, inputs, row, "teacher_"),
                "tokens": token_texts(tokenizer, ids),
                "divergence": rounded(divergence[row][mask[row]]),
                "log_ratio": rounded(log_ratio[row][mask[row]]),
                "teacher": teachers[row],
            }
        )
    return lines


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
