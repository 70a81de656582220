"""The check `answers`: is the teacher better, and does it stay so on what the student has written? (Mechanism 1)"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..evaluation.statistics import paired_difference
from ..models.forward import read_head, token_log_probs, vocabulary_rows
from ..models.multimodal import has_images
from ..models.sampling import Completion, Sampling
from ..models.sequences import left_pad, unpadded
from ..models.transformers_engine import TransformersEngine
from ..trainers.looks.rollouts import Rollout, student_hidden_states
from .findings import INFO, OURS, PAPER, Finding
from .state import Preflight


# How the paper draws the teacher's traces.
TRACES = {"temperature": 0.3, "top_p": 1.0, "top_k": 0}
# Teachers that go on do so from this share of a student's answer.
CUT_AT = 0.5


def run(preflight: Preflight) -> list[Finding]:
    """Judge the teacher's answers where something can, and how likely the student finds them."""
    trainer, judge = preflight.trainer, preflight.judge
    if len(trainer.teachers) > 1:
        raise ValueError("answers are compared for one teacher. Name one: --teacher PATH.")
    goes_on = judge is not None and preflight.continue_answers
    with preflight.over_batches("The teacher answers") as done:
        answers = teacher_answers(
            trainer, preflight.rollouts, continue_too=goes_on, seed=trainer.args.seed, on_batch=done
        )
    nll = nll_under_student(trainer, preflight.rollouts, answers.teacher)
    figures: dict[str, float | None] = {"nll_of_teacher_text": nll}
    preflight.details["answers"] = figures
    findings = []
    if nll is not None:
        findings.append(traces(nll))
    if judge is None:
        return findings
    scores = {
        "student": judge(answers.student, answers.rows),
        "teacher": judge([answer.text for answer in answers.teacher], answers.rows),
    }
    if goes_on:
        scores["continued"] = judge(answers.continued, answers.rows)
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    figures |= means
    better = paired_difference(scores["student"], scores["teacher"])
    findings.append(judge_teacher(better, teacher=means["teacher"], student=means["student"]))
    if goes_on:
        lost = paired_difference(scores["teacher"], scores["continued"])
        findings.append(continuation(lost.value, **means))
    return findings


def judge_teacher(difference: Any, *, teacher: float, student: float) -> Finding:
    """Is the teacher better than the student? `difference` has `value`, `low` and `high`, in pairs of prompts."""
    figure = f"{teacher:.2f} against {student:.2f}"
    threshold, name = f"better beyond its 95 % interval ({OURS})", "teacher against student"
    if difference.value <= 0:
        sentence = "The teacher answers no better than the student: there is nothing to learn from it."
        change = "another teacher, or a privileged context that helps"
        return Finding(name, "stop", figure, sentence, threshold, change, difference.value)
    if difference.low <= 0:
        sentence = (
            f"The teacher looks better, but not beyond chance ({difference.low:+.2f} to {difference.high:+.2f})."
        )
        sentence += " --prompts: more of them would tell."
        return Finding(name, INFO, figure, sentence, threshold, value=difference.value)
    sentence = "The teacher answers better than the student."
    return Finding(name, "ok", figure, sentence, threshold, value=difference.value)


def continuation(lost: float, *, teacher: float, continued: float, student: float) -> Finding:
    """What is left of the teacher's accuracy when it goes on from half of a student's answer? Mechanism 1.

    The paper's 14B teacher falls from 62.1 to 46.0 % on prefixes of a 1.7B student. As a verdict it was wrong in our
    study in 44 of 64 runs, since half of a short answer can have decided everything.

    Args:
        lost: mean of `continued` less `teacher`, in pairs of prompts.
        teacher, continued, student: accuracy of the teacher from scratch, of the teacher from half of the student's
            answers, and of these answers.
    """
    figure = f"{teacher:.2f} from scratch, {continued:.2f} from half of the student's answer ({student:.2f})"
    sentence = "What the teacher reaches when it goes on from what the student has begun."
    return Finding("teacher on student prefixes", INFO, figure, sentence, value=lost)


def traces(nll: float) -> Finding:
    """Would the student write what the teacher writes? NLL of the teacher's own answers under the student."""
    figure = f"{nll:.3f} nats a token"
    sentence = f"How likely the student finds the teacher's answers (.640 before SFT, .335 after, {PAPER})."
    return Finding("teacher's answers under the student", INFO, figure, sentence, value=nll)


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
        ValueError: a teacher that scores and does not write, as a served one.
    """
    if not trainer.teacher.can_write:
        raise ValueError(
            "this teacher scores and writes nothing here: it is served, a mean of several, or of another tokenizer. "
            "Name a model: --teacher PATH."
        )
    if any(has_images(rollout.batch) for rollout in rollouts):
        raise ValueError(
            "the teacher's own answers are written from text alone, and these rows have images. Take rows without "
            "images for this check."
        )
    sampling = Sampling(max_new_tokens=trainer.max_completion_length, **TRACES)
    tokenizer, answers = trainer.tokenizer, Answers([], [], [], [])
    with trainer.teacher.scoring(trainer.model) as module, own_generation(trainer.accelerator.unwrap_model(module)):
        engine = TransformersEngine(trainer.accelerator.unwrap_model(module), tokenizer)
        for number, rollout in enumerate(rollouts):
            batch = trainer.shared_ids.readable(rollout.batch)
            prompts = unpadded(batch, "teacher_prompt" if "teacher_prompt_ids" in batch else "prompt")
            written, read = unpadded(rollout.batch, "completion"), unpadded(batch, "completion")
            answers.rows.extend(rollout.rows)
            answers.student.extend(tokenizer.decode(ids, skip_special_tokens=True) for ids in written)
            answers.teacher.extend(engine.generate(prompts, sampling, [seed, number]))
            if continue_too:
                longer = [prompt + half(ids) for prompt, ids in zip(prompts, read, strict=True)]
                rest = engine.generate(longer, sampling, [seed, number, 1])
                texts = [tokenizer.decode(half(ids), skip_special_tokens=True) for ids in written]
                answers.continued.extend(text + more.text for text, more in zip(texts, rest, strict=True))
            on_batch()
    return answers


def half(ids: list[int]) -> list[int]:
    """What the teacher goes on from: the first tokens of an answer."""
    return ids[: int(len(ids) * CUT_AT)]


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


def nll_under_student(trainer, rollouts: Sequence[Rollout], texts: Sequence[Completion]) -> float | None:
    """NLL of texts as answers to the student's own prompts, nats a token; None where all are empty."""
    nats, tokens = map(sum, zip(*nats_under_student(trainer, rollouts, texts), strict=True))
    return nats / tokens if tokens else None


@torch.no_grad()
def nats_under_student(trainer, rollouts: Sequence[Rollout], texts: Sequence[Completion]) -> list[tuple[float, int]]:
    """Of each text as an answer to the student's own prompt: the sum of its tokens' NLL, and their number."""
    found = []
    for rollout, answers in along(rollouts, texts):
        batch, own = rollout.batch, [ids_of(trainer.tokenizer, answer) for answer in answers]
        rows = [i for i, ids in enumerate(own) if ids]
        nats = [0.0] * len(own)
        if rows:
            # Padded on the left, then turned: completions are padded on the right.
            padded, mask = left_pad([own[i][::-1] for i in rows], pad_token_id=0, device=batch["prompt_ids"].device)
            padded, mask = padded.flip(-1), mask.flip(-1)
            given = {name: batch[name][rows] for name in ("prompt_ids", "prompt_mask")}
            hidden_states = student_hidden_states(trainer, given | {"completion_ids": padded, "completion_mask": mask})
            num_rows = vocabulary_rows(trainer.model.config.get_text_config())
            kept, head = mask.bool(), read_head(trainer.model).rows(num_rows)
            log_probs, _ = token_log_probs(hidden_states[kept], head, padded[kept])
            for place, i in zip(torch.nonzero(kept)[:, 0].tolist(), log_probs.tolist(), strict=True):
                nats[rows[place]] -= i
        found += [(value, len(ids)) for value, ids in zip(nats, own, strict=True)]
    return found


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
