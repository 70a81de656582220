"""A pre-flight: the sections, one after the other, on one set of rollouts of a trainer that does not train."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..evaluation.statistics import paired_difference
from ..trainers.opsd import OPSDTrainer
from . import context_figures, findings
from .contexts import probe_contexts
from .cost import measure_step
from .findings import Finding
from .loss import check_loss
from .loss_check import CLOSE, judge, judge_tail
from .prefixes import nll_under_student, pair_figures, teacher_answers
from .rollouts import Rollout, num_batches, roll_out, take_rows
from .templates import check_templates


# K of the rows beside the configured loss.
TOP_KS = (1, 20)

#: Texts and their rows -> 1 or 0 for each.
Judge = Callable[[list[str], list[dict[str, Any]]], list[float]]
#: Title and number of batches -> a progress bar, which yields what is called after each batch.
Bar = Callable[[str, int], contextlib.AbstractContextManager[Callable[[], None]]]


def no_bar(title: str, total: int) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """Shows nothing."""
    return contextlib.nullcontext(lambda: None)


@dataclasses.dataclass
class Flight:
    """What a pre-flight has so far.

    Attributes:
        trainer: an OPDTrainer.
        prompts: rows that the student answers.
        contexts: privileged contexts per prompt in the PI test.
        judge: of answers, where there is one.
        goes_on: does a right answer depend on all of it, so that the teacher can go on from half of the student's?
        bar: shows progress.
        rollouts: of the student.
        generation_seconds: that they took.
        findings: in their order.
        details: further figures, by section.
    """

    trainer: Any
    prompts: int = 64
    contexts: int = 4
    judge: Judge | None = None
    goes_on: bool = True
    bar: Bar = no_bar
    rollouts: list[Rollout] = dataclasses.field(default_factory=list)
    generation_seconds: float = 0.0
    findings: list[Finding] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def over_batches(self, title: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """A progress bar over the batches of rollouts."""
        return self.bar(title, len(self.rollouts))


def fly(flight: Flight, sections: Iterable[str]) -> None:
    """Let the student answer, then run sections of `SECTIONS`; one that cannot run says so in a finding."""
    roll(flight)
    for name in sections:
        try:
            SECTIONS[name](flight)
        except ValueError as error:
            flight.findings.append(Finding(name, name, "not run", "", str(error)))


def roll(flight: Flight) -> None:
    """Let the student answer."""
    trainer = flight.trainer
    rows = take_rows(trainer.train_dataset, flight.prompts, seed=trainer.args.seed)
    start = time.perf_counter()
    with flight.bar("The student answers", num_batches(trainer, rows)) as done:
        flight.rollouts = roll_out(trainer, rows, on_batch=done)
    flight.generation_seconds = time.perf_counter() - start


def templates(flight: Flight) -> None:
    """Prompts, EOS, lengths."""
    flight.findings += check_templates(flight.trainer, flight.rollouts)
    ended = [ended_by_itself(flight.trainer, rollout) for rollout in flight.rollouts]
    flight.findings.append(findings.judge_endings(1 - sum(map(sum, ended)) / sum(map(len, ended))))


def ended_by_itself(trainer, rollout: Rollout) -> list[bool]:
    """Which completions hold an EOS token."""
    ids, mask = rollout.batch["completion_ids"], rollout.batch["completion_mask"].bool()
    return ((ids == trainer._tokenizer.eos_token_id) & mask).any(-1).tolist()


def prefixes(flight: Flight) -> None:
    """Mechanism 1 and coverage, token by token."""
    with flight.over_batches("Both models on the student's text") as done:
        figures = pair_figures(flight.trainer, flight.rollouts, on_batch=done)
    args = flight.trainer.args
    names = ("reverse_kl", "forward_kl", "student_entropy", "teacher_entropy", "overlap", "outside")
    means = {name: getattr(figures, name).mean().item() for name in names}
    quarters = {name: figures.by_quarter(name) for name in names}
    flight.details["tokens"] = {"count": len(figures.reverse_kl), "mean": means, "by_quarter": quarters}
    objective = {"divergence": args.divergence, "support": args.loss_support}
    flight.findings += [
        findings.judge_divergence(means["reverse_kl"], own_teacher=isinstance(flight.trainer, OPSDTrainer)),
        findings.judge_overlap(means["overlap"], args.loss_top_k),
        findings.judge_drift(quarters["overlap"]),
        findings.judge_coverage(means["outside"], figures.by_place("outside"), top_k=args.loss_top_k, **objective),
    ]


def answers(flight: Flight) -> None:
    """Mechanism 1, answer by answer, where something judges them; and the student's view of the teacher's text."""
    trainer = flight.trainer
    if len(trainer.teachers) > 1:
        raise ValueError("answers are compared for one teacher. Name one: --teacher PATH.")
    judge_of, goes_on = flight.judge, flight.judge is not None and flight.goes_on
    with flight.over_batches("The teacher answers") as done:
        found = teacher_answers(trainer, flight.rollouts, continue_too=goes_on, seed=trainer.args.seed, on_batch=done)
    args = trainer.args
    nll = nll_under_student(trainer, flight.rollouts, found.teacher)
    flight.details["answers"] = {"nll_of_teacher_text": nll}
    if nll is not None:
        finding = findings.judge_traces(nll, divergence=args.divergence, support=args.loss_support)
        flight.findings.append(finding)
    if judge_of is None:
        return
    scores = {
        "student": judge_of(found.student, found.rows),
        "teacher": judge_of([answer.text for answer in found.teacher], found.rows),
    }
    if goes_on:
        scores["continued"] = judge_of(found.continued, found.rows)
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    flight.details["answers"] |= means
    better = paired_difference(scores["student"], scores["teacher"])
    flight.findings.append(findings.judge_teacher(better, teacher=means["teacher"], student=means["student"]))
    if goes_on:
        lost = paired_difference(scores["teacher"], scores["continued"])
        flight.findings.append(findings.judge_continuation(lost, **means))


def loss(flight: Flight) -> None:
    """Mechanism 2: the row of `verify-loss`."""
    with flight.over_batches("Gradients of the loss") as done:
        found = check_loss(flight.trainer, flight.rollouts, top_ks=TOP_KS, on_batch=done)
    word, sentence = judge(found.rows, found.exact_loss)
    row = found.rows[0]
    agreement = row.cosine if row.block_cosine is None else row.block_cosine
    agreement_text = "-" if agreement is None else f"{agreement:.3f}"
    figure = f"left at the teacher {row.gradient_at_teacher:.1e}, cosine {agreement_text}"
    threshold = f"0 at the teacher ({findings.PAPER}, eq. 12); cosine above {CLOSE} ({findings.OURS})"
    flight.findings.append(Finding("loss", "gradient", word, figure, sentence, threshold, value=agreement))
    flight.findings.append(judge_tail(row.tail_pull, flight.trainer.args.loss_top_k))
    flight.details["loss"] = found


def contexts(flight: Flight) -> None:
    """Mechanism 3: the PI test, where the teacher reads a privileged context."""
    if flight.trainer._teacher_prompts.view is None:
        return
    with flight.over_batches("The teacher under other contexts") as done:
        found = probe_contexts(
            flight.trainer,
            flight.rollouts,
            contexts=flight.contexts,
            seed=flight.trainer.args.seed,
            on_batch=done,
        )
    flight.findings += context_figures.findings(found)
    flight.details["context"] = dataclasses.asdict(found)


def cost(flight: Flight) -> None:
    """Seconds by phase and memory."""
    generated = sum(len(rollout.rows) for rollout in flight.rollouts)
    found = measure_step(
        flight.trainer, flight.rollouts[0], generation_seconds=flight.generation_seconds, generated=generated
    )
    flight.details["cost"] = dataclasses.asdict(found) | {"total": found.total, "teacher_share": found.teacher_share}
    figure = (
        f"{found.total:.1f} s for {found.completions} completions: generation {found.generation:.1f}, teacher "
        f"{found.teacher:.1f}, student {found.student:.1f}; peak {found.peak_gib:.1f} GiB"
    )
    sentence = f"The teacher takes {found.teacher_share:.0%} of a step (one process, {found.device}, no optimizer)."
    flight.findings.append(Finding("cost", "a step", "ok", figure, sentence, value=found.total))


SECTIONS: dict[str, Callable[[Flight], None]] = {
    "templates": templates,
    "prefixes": prefixes,
    "answers": answers,
    "loss": loss,
    "context": contexts,
    "cost": cost,
}
