"""`opd-trl preflight`: a pre-flight of what a command line would train."""

import argparse
import contextlib
from typing import Any

from rich.console import Console

from ..cli.checking.loss import configuration, figures_of
from ..cli.checking.ranking import rank
from ..cli.terminal import progress
from ..data.files import DataError
from ..evaluation import parse_rule
from ..evaluation.math import math_accuracy
from ..scripts.recipe_command import peek, training_command
from ..scripts.subject import Subject, build, read_subject
from .findings import Finding
from .flight import Flight, Judge
from .sections import SECTIONS, fly
from .templates import first_prompts


PROG = "opd-trl preflight"
OWN_FLAGS: dict[str, dict[str, Any]] = {
    "teacher": {"action": "append", "default": []},
    "rule": {"action": "append", "default": []},
    "contexts": {"type": int},
}
DEFAULTS = {"prompts": 64, "contexts": 4}


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
        flight = Flight(
            trainer,
            prompts=subject.own.prompts,
            contexts=subject.own.contexts,
            judge=checker(trainer, subject.own.rule),
            # A rule about form cannot be met by going on from an answer that has begun otherwise.
            goes_on=not subject.own.rule,
            bar=lambda title, total: progress(title, total, console),
        )
        fly(flight, SECTIONS)
        details, completions = flight.details, sum(len(rollout.rows) for rollout in flight.rollouts)
        if "loss" in details:
            configured = configuration(trainer.args)
            details["loss"] = figures_of(details["loss"], prompts=completions, configured=configured)
        if subject.own.teacher:  # last: it takes the trainer's teacher away
            try:
                details["ranking"] = rank(flight, subject)
            except ValueError as error:
                flight.findings.append(Finding("ranking", "ranking", "not run", "", str(error)))
        details["prompts"] = first_prompts(trainer, flight.rollouts[0])
        return report(flight.findings, details, prompts=completions), subject


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
        "verdict": findings.worst(findings),
        "completions": prompts,
        "findings": [finding._asdict() for finding in findings],
        **details,
    }


def checker(trainer, own_rules: list[str]) -> Judge | None:
    """How answers are judged: by `--rule`, or by `math_accuracy` where the recipe rewards with it; else None."""
    rules = [parse_rule(rule) for rule in own_rules]
    if rules:
        return lambda texts, rows: [float(all(rule(text) for rule in rules)) for text in texts]
    columns = trainer.train_dataset.column_names or []
    if math_accuracy in trainer.reward_funcs and "answer" in columns:
        return lambda texts, rows: [score or 0.0 for score in math_accuracy(texts, [row["answer"] for row in rows])]
    return None


def check_rules(subject: Subject) -> None:
    """Refuse flags of the check that mean nothing, before anything is loaded."""
    for rule in subject.own.rule:
        parse_rule(rule)
    if subject.own.contexts < 2:
        raise ValueError(f"--contexts must be >= 2, got {subject.own.contexts}: the row's own and others.")
