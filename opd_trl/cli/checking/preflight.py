"""`opd-trl preflight`: the sections, one after the other, on one set of rollouts."""

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from ...data.files import DataError
from ...diagnostics import context_test, verdicts
from ...diagnostics.loss_check import CLOSE, judge
from ...diagnostics.verdicts import Finding
from ...evaluation import parse_rule
from ...evaluation.math import math_accuracy
from ...evaluation.statistics import paired_difference
from ...preflight.contexts import probe_contexts
from ...preflight.cost import measure_step
from ...preflight.loss import check_loss
from ...preflight.prefixes import nll_under_student, pair_figures, teacher_answers
from ...preflight.rollouts import Rollout, num_batches, roll_out, take_rows
from ...preflight.templates import check_templates
from ..evaluating.running import progress
from ..recipe_command import peek, training_command
from .loss import configuration, figures_of
from .prompts import first_prompts
from .screen import number
from .subject import Subject, build, read_subject


PROG = "opd-trl preflight"
OWN_FLAGS: dict[str, dict[str, Any]] = {
    "teacher": {"action": "append", "default": []},
    "rule": {"action": "append", "default": []},
    "contexts": {"type": int},
}
DEFAULTS = {"prompts": 64, "contexts": 4}
# K of the rows beside the configured loss.
TOP_KS = (1, 20)

#: Texts and their rows -> 1 or 0 for each.
Judge = Callable[[list[str], list[dict[str, Any]]], list[float]]


@dataclasses.dataclass
class Flight:
    """What a pre-flight has so far.

    Attributes:
        trainer: of the recipe.
        subject: the command line.
        console: progress goes there.
        rollouts: of the student.
        generation_seconds: that they took.
        findings: in their order.
        details: further figures for the JSON, by section.
    """

    trainer: Any
    subject: Subject
    console: Console
    rollouts: list[Rollout] = dataclasses.field(default_factory=list)
    generation_seconds: float = 0.0
    findings: list[Finding] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def bar(self, title: str) -> Iterator[Callable[[], None]]:
        """A progress bar over the batches of rollouts."""
        with progress(title, len(self.rollouts), self.console) as done:
            yield done


def preflight(argv: list[str], console: Console) -> tuple[dict[str, Any], Subject]:
    """Run the checks of a command line; return their figures and the parsed command line.

    Raises:
        ValueError: bad input. What a trainer refuses is a finding.
    """
    subject = read_subject(with_teacher(argv), OWN_FLAGS, prog=PROG, defaults=DEFAULTS)
    check_rules(subject)
    with contextlib.ExitStack() as stack:
        try:
            trainer = stack.enter_context(build(subject))
        except DataError:
            raise
        except ValueError as error:
            refused = Finding("templates", "the trainer refuses", "stop", "", str(error))
            return report([refused], {}, prompts=0), subject
        flight = Flight(trainer, subject, console)
        roll(flight)
        for name, run in SECTIONS.items():
            try:
                run(flight)
            except ValueError as error:
                flight.findings.append(Finding(name, name, "not run", "", str(error)))
        details = flight.details | {"prompts": first_prompts(trainer, flight.rollouts[0])}
        return report(flight.findings, details, prompts=sum(len(x.rows) for x in flight.rollouts)), subject


def with_teacher(argv: list[str]) -> list[str]:
    """A command line in which the first `--teacher` is the recipe's teacher, where that has none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--teacher", action="append", nargs="?", default=[])
    teachers = [teacher for teacher in parser.parse_known_args(argv)[0].teacher if teacher]
    if not teachers or training_command(peek(argv)) == "opd":
        return argv
    return [*argv, "--teacher_model_name_or_path", teachers[0]]


def report(findings: list[Finding], details: dict[str, Any], *, prompts: int) -> dict[str, Any]:
    """The pre-flight as JSON."""
    return {
        "verdict": verdicts.worst(findings),
        "completions": prompts,
        "findings": [finding._asdict() for finding in findings],
        **details,
    }


def roll(flight: Flight) -> None:
    """Let the student answer."""
    trainer = flight.trainer
    rows = take_rows(trainer.train_dataset, flight.subject.own.prompts, seed=flight.subject.training.seed)
    start = time.perf_counter()
    with progress("The student answers", num_batches(trainer, rows), flight.console) as done:
        flight.rollouts = roll_out(trainer, rows, on_batch=done)
    flight.generation_seconds = time.perf_counter() - start


def templates(flight: Flight) -> None:
    """Prompts, EOS, lengths."""
    flight.findings += check_templates(flight.trainer, flight.rollouts)
    ended = [ended_by_itself(flight.trainer, rollout) for rollout in flight.rollouts]
    flight.findings.append(verdicts.judge_endings(1 - sum(map(sum, ended)) / sum(map(len, ended))))


def ended_by_itself(trainer, rollout: Rollout) -> list[bool]:
    """Which completions hold an EOS token."""
    ids, mask = rollout.batch["completion_ids"], rollout.batch["completion_mask"].bool()
    return ((ids == trainer._tokenizer.eos_token_id) & mask).any(-1).tolist()


def prefixes(flight: Flight) -> None:
    """Mechanism 1 and coverage, token by token."""
    with flight.bar("Both models on the student's text") as done:
        figures = pair_figures(flight.trainer, flight.rollouts, on_batch=done)
    args = flight.trainer.args
    names = ("reverse_kl", "forward_kl", "student_entropy", "teacher_entropy", "overlap", "outside")
    means = {name: getattr(figures, name).mean().item() for name in names}
    quarters = {name: figures.by_quarter(name) for name in names}
    flight.details["tokens"] = {"count": len(figures.reverse_kl), "mean": means, "by_quarter": quarters}
    objective = {"divergence": args.divergence, "support": args.loss_support}
    flight.findings += [
        verdicts.judge_divergence(means["reverse_kl"], own_teacher=flight.subject.command == "opsd"),
        verdicts.judge_overlap(means["overlap"], args.loss_top_k),
        verdicts.judge_drift(quarters["overlap"]),
        verdicts.judge_coverage(means["outside"], figures.by_place("outside"), top_k=args.loss_top_k, **objective),
    ]


def answers(flight: Flight) -> None:
    """Mechanism 1, answer by answer, where something judges them; and the student's view of the teacher's text."""
    trainer = flight.trainer
    if len(trainer.teachers) > 1:
        raise ValueError("answers are compared for one teacher. Name one: --teacher PATH.")
    judge_of = checker(flight)
    # A rule about form cannot be met by going on from an answer that has begun otherwise.
    goes_on = judge_of is not None and not flight.subject.own.rule
    with flight.bar("The teacher answers") as done:
        found = teacher_answers(trainer, flight.rollouts, continue_too=goes_on, seed=trainer.args.seed, on_batch=done)
    args = trainer.args
    nll = nll_under_student(trainer, flight.rollouts, found.teacher)
    flight.details["answers"] = {"nll_of_teacher_text": nll}
    if nll is not None:
        finding = verdicts.judge_traces(nll, divergence=args.divergence, support=args.loss_support)
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
    flight.findings.append(verdicts.judge_teacher(better, teacher=means["teacher"], student=means["student"]))
    if goes_on:
        lost = paired_difference(scores["teacher"], scores["continued"])
        found_lost = verdicts.judge_continuation(lost, scratch=means["teacher"], continued=means["continued"])
        flight.findings.append(found_lost)


def checker(flight: Flight) -> Judge | None:
    """How answers are judged: by `--rule`, or by `math_accuracy` where the recipe rewards with it; else None."""
    rules = [parse_rule(rule) for rule in flight.subject.own.rule]
    if rules:
        return lambda texts, rows: [float(all(rule(text) for rule in rules)) for text in texts]
    columns = flight.trainer.train_dataset.column_names or []
    if math_accuracy in flight.trainer.reward_funcs and "answer" in columns:
        return lambda texts, rows: [score or 0.0 for score in math_accuracy(texts, [row["answer"] for row in rows])]
    return None


def loss(flight: Flight) -> None:
    """Mechanism 2: the row of `verify-loss`."""
    with flight.bar("Gradients of the loss") as done:
        found = check_loss(flight.trainer, flight.rollouts, top_ks=TOP_KS, on_batch=done)
    word, sentence = judge(found.rows, found.exact_loss)
    row = found.rows[0]
    agreement = row.cosine if row.block_cosine is None else row.block_cosine
    figure = f"left at the teacher {row.gradient_at_teacher:.1e}, cosine {number(agreement)}"
    threshold = f"0 at the teacher ({verdicts.PAPER}, eq. 12); cosine above {CLOSE} ({verdicts.OURS})"
    flight.findings.append(Finding("loss", "gradient", word, figure, sentence, threshold, value=agreement))
    configured = configuration(flight.trainer.args)
    flight.details["loss"] = figures_of(found, prompts=len(flight.rollouts), configured=configured)


def contexts(flight: Flight) -> None:
    """Mechanism 3: the PI test, where the teacher reads a privileged context."""
    if flight.trainer._teacher_prompts.view is None:
        return
    with flight.bar("The teacher under other contexts") as done:
        found = probe_contexts(
            flight.trainer,
            flight.rollouts,
            contexts=flight.subject.own.contexts,
            seed=flight.trainer.args.seed,
            on_batch=done,
        )
    flight.findings += context_test.findings(found)
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


def check_rules(subject: Subject) -> None:
    """Refuse flags of the check that mean nothing, before anything is loaded."""
    for rule in subject.own.rule:
        parse_rule(rule)
    if subject.own.contexts < 2:
        raise ValueError(f"--contexts must be >= 2, got {subject.own.contexts}: the row's own and others.")


def ranking(flight: Flight) -> None:
    """Other teachers on the same rollouts."""
    from .ranking import rank

    if flight.subject.own.teacher:
        flight.details["ranking"] = rank(flight, checker(flight))


SECTIONS: dict[str, Callable[[Flight], None]] = {
    "templates": templates,
    "prefixes": prefixes,
    "answers": answers,
    "loss": loss,
    "context": contexts,
    "cost": cost,
    "ranking": ranking,  # last: it takes the trainer's teacher away
}
