"""For the check `context`: which contexts each prompt is scored with, and what the teacher says after each."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import contents
from ..models.forward import scatter
from ..models.multimodal import TEACHER_IMAGES, ReadPrompt
from ..models.sequences import left_pad
from ..privileged import TEMPLATES, Context, Prompt, check_context, with_text
from ..teachers.scores import Scores
from ..teachers.several.routing import ROW_ENTRIES
from ..teachers.shared_prefix import SHARED, shared_tokens
from ..trainers.looks.rollouts import Rollout


@dataclass(frozen=True)
class Draw:
    """Which contexts each of K distinct prompts is scored with.

    Attributes:
        own: the context of each.
        columns: `(K, n)` int64, whose context; k itself first. n is 1 where all are the same.
        number: `identity` of a row -> k.
    """

    own: list[Context]
    columns: Tensor
    number: dict[str, int]

    def of(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        """The number k of the prompt of each row."""
        return [self.number[identity(row)] for row in rows]

    def contexts(self, numbers: Sequence[int], column: int) -> list[Context]:
        """The contexts that prompts of these numbers have in one column of the draw."""
        return [self.own[self.columns[k, column]] for k in numbers]


def draw_contexts(trainer, rollouts: Sequence[Rollout], contexts: int, seed: int) -> Draw:
    """Find the distinct prompts and draw other rows' contexts for each, without replacement."""
    view, number, own = trainer.teacher_prompts.view, {}, []
    for row in (row for rollout in rollouts for row in rollout.rows):
        if identity(row) not in number:
            number[identity(row)] = len(own)
            name = f"the row with the prompt {str(row['prompt'])[:80]!r}"
            own.append(view.shared or check_context(row.get(view.column), column=view.column, row=name))
    size = len(own)
    if size < 2:
        raise ValueError(f"the privileged-context test needs at least 2 prompts, got {size}. Raise --prompts.")
    width = 1 if len(set(map(identity, own))) == 1 else min(contexts, size)
    generator = torch.Generator().manual_seed(seed)
    # k + 1 + r for r in 0 .. K - 2 is every other row.
    others = [torch.randperm(size - 1, generator=generator)[: width - 1] for _ in own]
    columns = torch.stack([torch.cat([torch.tensor([k]), (k + 1 + r) % size]) for k, r in enumerate(others)])
    return Draw(own, columns, number)


def identity(value: Any) -> str:
    """A text that two rows, or two contexts, share only if they are the same in all that they hold."""
    return json.dumps(value, sort_keys=True, default=fingerprint)


def fingerprint(value: Any) -> str:
    """What tells a value from others that JSON has no form for: the pixels of an image."""
    return hashlib.sha256(value.tobytes()).hexdigest() if hasattr(value, "tobytes") else str(value)


def text_of(context: Context) -> str:
    """A context as plain text.

    >>> text_of([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    'a\\nb'
    """
    return context if isinstance(context, str) else "\n".join(contents.text_of(turn["content"]) for turn in context)


@dataclass(frozen=True)
class TeacherIds:
    """The teacher's prompts as it reads them: for each column of a `Draw`, without context, without the question."""

    columns: list[list[ReadPrompt]]
    empty: list[ReadPrompt]
    alone: list[ReadPrompt] | None


def teacher_prompts(trainer, rollout: Rollout, draw: Draw) -> TeacherIds:
    """Render every prompt that the test needs, as training renders its own."""
    rows, numbers = rollout.rows, draw.of(rollout.rows)
    own = draw.contexts(numbers, 0)

    def render(contexts: list[Context | None], rows: list[dict[str, Any]], what: str) -> list[ReadPrompt]:
        names = [f"the row with the prompt {str(row['prompt'])[:80]!r}, {what}" for row in rows]
        return trainer.teacher_prompts.read(rows, names, contexts=contexts)

    columns = [render(own, rows, "its own context")]
    for column in range(1, draw.columns.size(1)):
        columns.append(render(draw.contexts(numbers, column), rows, "another row's context"))
    try:
        alone = render(own, [{**row, "prompt": without_question(row["prompt"])} for row in rows], "no question")
    except Exception:  # whatever a function of the user's does with an empty question
        if trainer.args.privileged_builder in TEMPLATES:
            raise
        alone = None
    return TeacherIds(columns, render([None] * len(rows), rows, "no context"), alone)


def without_question(prompt: Prompt) -> Prompt:
    """An empty question; images stay.

    >>> without_question([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}])
    [{'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': ''}]
    """
    if isinstance(prompt, str):
        return ""
    question = {"role": "user", "content": with_text(prompt[-1]["content"], "")}
    return [*(turn for turn in prompt[:1] if turn["role"] == "system"), question]


# Where a data set holds what is right.
ANSWER_COLUMN = "answer"


def row_gains(
    trainer, rollout: Rollout, draw: Draw, prompts: TeacherIds, rows: Sequence[int]
) -> dict[str, list[float]]:
    """How much more of each row's question and answer its own context tells than others do; nats a token.

    Args:
        rows: those of the rollout that count, one for each prompt.
    """
    tokenizer, numbers = trainer.tokenizer, draw.of(rollout.rows)
    contexts = [[text_of(x) for x in draw.contexts(numbers, c)] for c in range(draw.columns.size(1))]
    plain = [[ReadPrompt(tokenizer.encode(f"{text}\n\n")) for text in column] for column in contexts]

    def encoded(texts: list[str | None]) -> dict[int, list[int]]:
        found = {i: tokenizer.encode(texts[i], add_special_tokens=False) for i in rows if texts[i] is not None}
        return {i: ids for i, ids in found.items() if ids}

    questions = encoded([question_of(row["prompt"]) for row in rollout.rows])
    answers = encoded([answer_of(row, trainer.teacher_prompts.view.column) for row in rollout.rows])
    return {
        "prompt_gains": gains_in(trainer, rollout.batch, contexts, plain, questions),
        "answer_gains": gains_in(trainer, rollout.batch, contexts, prompts.columns, answers),
    }


def gains_in(
    trainer,
    batch: dict[str, Any],
    contexts: list[list[str]],
    prefixes: list[list[ReadPrompt]],
    texts: dict[int, list[int]],
) -> list[float]:
    """Log-probability of each row's text after its own prefix less the mean after others; nats a token.

    Args:
        contexts, prefixes: n columns of one context, and the prompt that it makes, per row of the batch; the own ones
            first. Columns in which a row has its own context again do not count for it.
        texts: token ids by row of the batch.
    """
    others = {i: [c for c, column in enumerate(contexts) if column[i] != contexts[0][i]] for i in texts}
    rows = [i for i in texts if others[i]]
    if not rows:
        return []
    logs = [
        dict(
            zip(
                rows, text_log_probs(trainer, batch, rows, [x[i] for i in rows], [texts[i] for i in rows]), strict=True
            )
        )
        for x in prefixes
    ]
    return [logs[0][i] - sum(logs[c][i] for c in others[i]) / len(others[i]) for i in rows]


def question_of(prompt: Prompt) -> str | None:
    """The text of a prompt without its system turn; None where it is not text.

    >>> question_of([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}])
    'Why?'
    """
    if isinstance(prompt, str):
        return prompt
    parts = [turn["content"] for turn in prompt if turn["role"] != "system"]
    return "\n".join(parts) if all(isinstance(part, str) for part in parts) else None


def answer_of(row: dict[str, Any], column: str) -> str | None:
    """The row's answer as text; None where there is none, or where it is the privileged context itself."""
    answer = None if column == ANSWER_COLUMN else row.get(ANSWER_COLUMN)
    return str(answer) if isinstance(answer, str | int | float) and str(answer).strip() else None


def text_log_probs(
    trainer, batch: dict[str, Any], rows: Sequence[int], prefixes: list[ReadPrompt], texts: list[list[int]]
) -> list[float]:
    """Mean log-probability per token of each text after its prefix, under the teacher of its row at temperature 1."""
    # Padded on the left, then turned: completions are padded on the right.
    ids, mask = left_pad([text[::-1] for text in texts], pad_token_id=0, device=trainer.accelerator.device)
    part = trainer.shared_ids.readable({"completion_ids": ids.flip(-1), "completion_mask": mask.flip(-1)})
    part |= {name: batch[name][list(rows)] for name in ROW_ENTRIES if name in batch}
    sums = torch.zeros(len(rows), device=ids.device)
    for teacher in under(trainer, part, prefixes).values():
        kept = part["completion_mask"].bool()
        distributions = teacher.at(teacher.select(kept), *trainer.shared_ids.rows)
        if teacher.rows is not None:
            kept = kept & teacher.rows[:, None]
        found, *_ = distributions.log_probs(ids=part["completion_ids"][kept].unsqueeze(-1))
        sums += scatter(found.squeeze(-1).float(), kept).sum(-1)
    return (sums / mask.sum(-1)).tolist()


def under(trainer, batch: dict[str, Any], prompts: list[ReadPrompt]) -> dict[str, Scores]:
    """What each teacher says of the completions of a batch after other prompts."""
    batch = {name: value for name, value in batch.items() if name != TEACHER_IMAGES}  # those of other prompts
    batch |= trainer.teacher_prompts.laid_out(prompts)
    batch |= {SHARED: shared_tokens(batch["teacher_prompt_ids"], batch["teacher_prompt_mask"])}
    return trainer.teacher_scores(trainer.model, batch | trainer.score_ahead(batch))
