"""The teacher on the student's text: token by token, and as the author of answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..losses import chunked_support_loss
from ..losses.comparison import NextToken
from ..models.forward import read_head, token_log_probs
from ..models.sampling import Completion, Sampling
from ..models.transformers_engine import TransformersEngine
from ..privileged import left_pad
from ..teachers.served import ServedTeacher
from .rollouts import Rollout, Scored, quarters_of, score, student_hidden_states


# Positions at the head of a completion that are looked at one by one.
FIRST_PLACES = 8
# How the paper draws the teacher's traces.
TRACES = {"temperature": 0.3, "top_p": 1.0, "top_k": 0}
# Teachers that go on do so from this share of a student's answer.
CUT_AT = 0.5


@dataclass(frozen=True)
class PairFigures:
    """Both models at N tokens of the student's; every tensor is `(N,)`, on the CPU.

    Attributes:
        reverse_kl, forward_kl: over the whole vocabulary, nats.
        student_entropy, teacher_entropy: nats.
        overlap: of both TopK sets.
        outside: the teacher's probability outside the student's TopK.
        place: index of the token in its completion.
        quarter: 0 to 3, of the completion's kept tokens.
    """

    reverse_kl: Tensor
    forward_kl: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    overlap: Tensor
    outside: Tensor
    place: Tensor
    quarter: Tensor

    def by_quarter(self, name: str) -> list[float]:
        """Means of a figure by quarter of the completions; one without a token repeats the one before."""
        means: list[float] = []
        for quarter in range(4):
            values = getattr(self, name)[self.quarter == quarter]
            means.append(values.mean().item() if len(values) else means[-1])
        return means

    def by_place(self, name: str, *, least: int = 2) -> list[float]:
        """Means of a figure at each of the first positions that at least so many completions reach."""
        values = [getattr(self, name)[self.place == place] for place in range(FIRST_PLACES)]
        return [x.mean().item() for x in values if len(x) >= least]


def pair_figures(trainer, rollouts: Sequence[Rollout], *, on_batch: Callable[[], None] = lambda: None) -> PairFigures:
    """Compare both models token by token on rollouts of the student."""
    parts = []
    for rollout in rollouts:
        with torch.no_grad():
            parts += [figures_of(scored, trainer._loss_options) for scored in score(trainer, rollout)]
        on_batch()
    return PairFigures(*(torch.cat(part) for part in zip(*parts, strict=True)))


def figures_of(scored: Scored, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """The fields of `PairFigures` for the tokens of one teacher, by the code of the loss."""
    forward = measure(scored.student, scored.teacher, options, support="full")
    backward = measure(scored.teacher, scored.student, options, support="full")
    on_support = measure(scored.student, scored.teacher, options, support="student")
    kept = scored.kept
    figures = (
        forward["per_token_divergence"],
        backward["per_token_divergence"],
        forward["entropy"],
        backward["entropy"],
        on_support["overlap"],
        1 - on_support["teacher_mass"],
        torch.arange(kept.size(1), device=kept.device).expand_as(kept)[kept],
        quarters_of(kept),
    )
    return tuple(figure.cpu() for figure in figures)


def measure(student: NextToken, teacher: NextToken, options: dict[str, Any], *, support: str) -> dict[str, Tensor]:
    """Statistics of the reverse KL between two models."""
    conventions = {}
    for role, model in (("student", student), ("teacher", teacher)):
        conventions |= {
            f"{role}_lm_head_bias": model.bias,
            f"{role}_logit_scale": model.transform.logit_scale,
            f"{role}_final_logit_softcapping": model.transform.final_logit_softcapping,
        }
    _, stats = chunked_support_loss(
        student.hidden_states,
        student.weight,
        teacher.hidden_states,
        teacher.weight,
        torch.ones(len(student), device=student.hidden_states.device),
        support=support,
        tail="drop",
        top_k=min(options["top_k"], student.weight.size(0)),
        temperature=options["temperature"],
        chunk_size=options["chunk_size"],
        **conventions,
    )
    return stats


@dataclass(frozen=True)
class Answers:
    """Answers to the prompts of rollouts, in their order.

    Attributes:
        rows: of the data set.
        student: the rollouts as text.
        teacher: the teacher's own answers.
        continued: half of each rollout and what the teacher writes from there; empty where it was not asked for.
    """

    rows: list[dict[str, Any]]
    student: list[str]
    teacher: list[Completion]
    continued: list[str]


def teacher_answers(
    trainer,
    rollouts: Sequence[Rollout],
    *,
    continue_too: bool,
    seed: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Answers:
    """Let the teacher answer from scratch, and go on from half of what the student wrote.

    Args:
        trainer: an OPDTrainer with one teacher, in this process.
        rollouts: from `roll_out`.
        continue_too: also let it go on.
        seed: of its sampling.

    Raises:
        ValueError: a served teacher, which scores and does not write.
    """
    if isinstance(trainer.teacher, ServedTeacher):
        raise ValueError("a served teacher scores and writes nothing here. Name its model: --teacher PATH.")
    sampling = Sampling(max_new_tokens=trainer.max_completion_length, **TRACES)
    tokenizer, answers = trainer._tokenizer, Answers([], [], [], [])
    with trainer.teacher.scoring(trainer.model) as module, own_generation(module):
        engine = TransformersEngine(module, tokenizer)
        for number, rollout in enumerate(rollouts):
            prompts = unpadded(rollout.batch, "teacher_prompt" if "teacher_prompt_ids" in rollout.batch else "prompt")
            completions = unpadded(rollout.batch, "completion")
            answers.rows.extend(rollout.rows)
            answers.student.extend(tokenizer.decode(ids, skip_special_tokens=True) for ids in completions)
            answers.teacher.extend(engine.generate(prompts, sampling, [seed, number]))
            if continue_too:
                heads = [ids[: int(len(ids) * CUT_AT)] for ids in completions]
                longer = [prompt + head for prompt, head in zip(prompts, heads, strict=True)]
                rest = engine.generate(longer, sampling, [seed, number, 1])
                texts = [tokenizer.decode(head, skip_special_tokens=True) for head in heads]
                answers.continued.extend(text + more.text for text, more in zip(texts, rest, strict=True))
            on_batch()
    return answers


@contextmanager
def own_generation(model) -> Iterator[None]:
    """Give a model its generation settings back, which `TransformersEngine` replaces."""
    models = [model, model.get_base_model() if hasattr(model, "peft_config") else model]
    saved = [x.generation_config for x in models]
    try:
        yield
    finally:
        for x, config in zip(models, saved, strict=True):
            x.generation_config = config


def unpadded(batch: dict[str, Any], name: str) -> list[list[int]]:
    """Token ids of each row of `name_ids`, those that `name_mask` keeps."""
    ids, mask = batch[f"{name}_ids"], batch[f"{name}_mask"].bool()
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]


@torch.no_grad()
def nll_under_student(trainer, rollouts: Sequence[Rollout], texts: Sequence[Completion]) -> float | None:
    """NLL of texts as answers to the student's own prompts, nats a token; None where all are empty."""
    nats, tokens = 0.0, 0
    for rollout, answers in along(rollouts, texts):
        batch, own = rollout.batch, [ids_of(trainer._tokenizer, answer) for answer in answers]
        rows = [i for i, ids in enumerate(own) if ids]
        if not rows:
            continue
        # Padded on the left, then turned: completions are padded on the right.
        padded, mask = left_pad([own[i][::-1] for i in rows], pad_token_id=0, device=batch["prompt_ids"].device)
        padded, mask = padded.flip(-1), mask.flip(-1)
        hidden_states = student_hidden_states(
            trainer,
            {
                "prompt_ids": batch["prompt_ids"][rows],
                "prompt_mask": batch["prompt_mask"][rows],
                "completion_ids": padded,
                "completion_mask": mask,
            },
        )
        kept, head = mask.bool(), read_head(trainer.model).rows(trainer._num_rows)
        log_probs, _ = token_log_probs(hidden_states[kept], head, padded[kept])
        nats, tokens = nats - log_probs.sum().item(), tokens + len(log_probs)
    return nats / tokens if tokens else None


def ids_of(tokenizer, answer: Completion) -> list[int]:
    """Token ids of an answer, with the end token where it ended."""
    ids = tokenizer.encode(answer.text, add_special_tokens=False)
    return ids + [tokenizer.eos_token_id] * (answer.finished and tokenizer.eos_token_id is not None)


def along(rollouts: Sequence[Rollout], items: Sequence[Any]) -> Iterator[tuple[Rollout, Sequence[Any]]]:
    """Rollouts with their share of items, one per row."""
    start = 0
    for rollout in rollouts:
        yield rollout, items[start : start + len(rollout.rows)]
        start += len(rollout.rows)
