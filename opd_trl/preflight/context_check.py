"""The check `context`: the same text of the student under the row's own, another, no and the bare privileged context.

How contexts are drawn stands in `context_draw.py`; figures, thresholds and words in `context_figures.py`.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from rich.table import Table

from ..losses.divergences import DIVERGENCES
from ..losses.mixture import Mixture
from ..losses.next_token import NextToken
from ..losses.spread import context_spread
from ..teachers.scores import Scores
from ..trainers.looks.rollouts import Rollout, quarters_of, score
from .clustered import WIDTH
from .context_draw import Draw, TeacherIds, draw_contexts, row_gains, teacher_prompts, text_of, under
from .context_figures import ContextFigures, ContextTokens, context_figures, findings_of
from .findings import Finding
from .state import Preflight


# What the teacher reads, as the table words it.
KINDS = {
    "own": "the row's own context",
    "other": "another row's",
    "empty": "none",
    "alone": "the context without the question",
    "moved": "teacher without against teacher with its own",
}


def run(preflight: Preflight) -> list[Finding]:
    """The PI test, where the teacher reads a privileged context."""
    trainer = preflight.trainer
    if trainer.teacher_prompts.view is None:
        return []
    with preflight.over_batches("The teacher under other contexts") as done:
        figures = probe_contexts(
            trainer, preflight.rollouts, contexts=preflight.contexts, seed=trainer.args.seed, on_batch=done
        )
    preflight.details["context"] = asdict(figures)
    found = findings_of(figures)
    if trainer.args.shuffle_privileged_context:  # another row's, as asked for
        return [finding for finding in found if finding.name != "belongs to its row"]
    return found


def table(figures: dict[str, Any]) -> Table | None:
    """The student's divergence to the teacher under each kind of context."""
    if "context" not in figures:
        return None
    grid = Table("the teacher reads", "nats a token", "± (95 %)", box=None, pad_edge=False)
    for kind, said in KINDS.items():
        if figures["context"][kind] is not None:
            value, error = figures["context"][kind]
            grid.add_row(said, f"{value:.4f}", f"{WIDTH * error:.4f}")
    return grid


def probe_contexts(
    trainer,
    rollouts: Sequence[Rollout],
    *,
    contexts: int = 4,
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> ContextFigures:
    """Score rollouts of the student under several privileged contexts and split what differs from what is shared.

    Template, teacher (an adapter that is switched off, a moving copy, another model), temperature and rows of the head
    are those of training. The teacher reads each completion after
    - the row's own context;
    - those of `contexts - 1` other rows, drawn with `seed`; none where all rows have the same context;
    - no context: the bare prompt, in the teacher's own chat template;
    - the context alone: what the builder makes of an empty question. Of messages a leading system turn and one empty
      user turn remain; of text, an empty text. So `system_prompt` gives the context as system message and an empty
      user turn, `few_shot` its examples and an empty user turn, the others their wording around nothing. Left out
      where a builder of your own fails on it.

    Where contexts differ, also `prompt_gain`: the teacher's log-probability of the question's text after the own
    context's text less that after another's, without a chat template; and, with a column `answer`, `answer_gain`: the
    same of the answer after the teacher's prompt.

    Args:
        trainer: an OPDTrainer with a privileged context that does not train.
        rollouts: from `roll_out`, of at least two prompts.
        contexts: n, the own one included; fewer where there are fewer prompts.
        on_batch: called after each rollout.

    Returns:
        figures in the divergence of the recipe; in the reverse KL where that is a JSD, which cannot be split.

    Raises:
        ValueError: no privileged context, one that is made while training (`sibling_context`), fewer than two contexts
            or prompts, a served teacher that sends TopK log-probabilities alone.
    """
    refuse_untestable(trainer, contexts)
    draw = draw_contexts(trainer, rollouts, contexts, seed)
    tokenizer, objective = trainer.tokenizer, objective_of(trainer.args)
    parts: list[ContextTokens] = []
    gains: dict[str, list[float]] = {"prompt_gains": [], "answer_gains": []}
    seen: set[int] = set()
    for rollout in rollouts:
        prompts = teacher_prompts(trainer, rollout, draw)
        with torch.no_grad():
            parts += score_tokens(trainer, rollout, draw, prompts, objective)
            numbers = draw.of(rollout.rows)
            fresh = [i for i, k in enumerate(numbers) if k not in seen and k not in numbers[:i]]
            seen.update(numbers)
            for name, found in row_gains(trainer, rollout, draw, prompts, fresh).items():
                gains[name] += found
        on_batch()
    lengths = [len(tokenizer.encode(text_of(context), add_special_tokens=False)) for context in draw.own]
    return context_figures(
        joined(parts),
        divergence=objective["divergence"],
        context_length=statistics.median(lengths),
        **{name: torch.tensor(values) for name, values in gains.items()},
    )


def refuse_untestable(trainer, contexts: int) -> None:
    """Raise ValueError where no context can be tested: none is given, siblings are, or there is none to compare."""
    if trainer.teacher_prompts.view is None:
        raise ValueError(
            "there is no privileged context to test: the teacher reads the student's own prompt. Give one with "
            "privileged_context, privileged_context_file or privileged_context_column."
        )
    if trainer.shared_ids.reads_text:
        raise ValueError(
            "with teacher_vocabulary='text' this test is not made: it puts texts in the student's tokens behind other "
            "contexts. Test the privileged context with a teacher of the student's tokenizer."
        )
    if trainer.args.sibling_context:
        raise ValueError(
            "with sibling_context the privileged context is another completion of the same prompt, so those of other "
            "rows say nothing about it. Test it with a column that holds such completions."
        )
    if contexts < 2:
        raise ValueError(f"contexts must be >= 2, got {contexts}: the row's own and at least one of another row.")


def objective_of(args) -> dict[str, Any]:
    """Which divergence is split into what can be learned and what cannot."""
    # The sampled token estimates the reverse KL, whatever `divergence` says.
    can_split = DIVERGENCES[args.divergence].splits_by_context and args.loss_support != "sampled"
    return {"divergence": args.divergence if can_split else "reverse_kl", "beta": args.divergence_beta}


def score_tokens(
    trainer, rollout: Rollout, draw: Draw, prompts: TeacherIds, objective: dict[str, Any]
) -> list[ContextTokens]:
    """Split the divergence at the kept tokens of a rollout; one part for each teacher that has rows in it."""
    bare = [prompts.empty] if prompts.alone is None else [prompts.empty, prompts.alone]
    numbers, scores, parts = torch.tensor(draw.of(rollout.rows)), [], []
    objective = objective | {"temperature": trainer.objective.temperature}
    for scored in score(trainer, rollout):  # it refuses teachers of which too little is known
        scores = scores or [under(trainer, rollout.batch, ids) for ids in (*prompts.columns[1:], *bare)]
        found = [next_tokens(trainer, rollout, x[scored.teacher_name]) for x in scores]
        others, (empty, *alone) = found[: len(prompts.columns) - 1], found[len(prompts.columns) - 1 :]
        spread = context_spread(scored.student, [scored.teacher, *others], **objective)
        alone_and_empty = context_spread(scored.student, [empty, *alone], **objective).per_context
        moved = context_spread(empty, [scored.teacher], **objective).per_context
        kept = scored.kept.cpu()
        parts.append(
            ContextTokens(
                per_context=spread.per_context.cpu(),
                irreducible=spread.irreducible.cpu(),
                irreducible_without=spread.irreducible_without.cpu(),
                empty=alone_and_empty[:, 0].cpu(),
                alone=alone_and_empty[:, 1].cpu() if alone else None,
                moved=moved[:, 0].cpu(),
                quarter=quarters_of(kept),
                prompt=numbers[:, None].expand_as(kept)[kept],
                contexts=draw.columns,
            )
        )
    return parts


def next_tokens(trainer, rollout: Rollout, teacher: Scores) -> NextToken | Mixture:
    """A teacher's distributions at its kept tokens, as `rollouts.score` reads them."""
    return teacher.at(teacher.select(rollout.kept), *trainer.shared_ids.rows)


def joined(parts: Sequence[ContextTokens]) -> ContextTokens:
    """The tokens of several rollouts and teachers as one."""
    columns = {}
    for field in fields(ContextTokens):
        values = [getattr(part, field.name) for part in parts]
        if field.name == "contexts":
            columns[field.name] = values[0]
        else:
            columns[field.name] = None if any(value is None for value in values) else torch.cat(values)
    return ContextTokens(**columns)
