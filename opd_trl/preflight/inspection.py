"""The entry of this room: a trainer and plain values in, the figures of `preflight` or `verify-loss` out, as JSON.

Nothing here reads a command line or prints: `opd_trl/cli/preflight.py` and `opd_trl/cli/verify_loss.py` do.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from ..evaluation.math import math_accuracy
from ..trainers.looks.held_out import Judge
from ..trainers.looks.rollouts import num_batches, roll_out, take_rows
from . import checks
from .findings import Finding, worst
from .loss import check_loss, figures_of
from .loss_check import TOP_KS
from .state import Bar, Preflight, no_bar


#: Does an answer obey? From `evaluation.parse_rule`.
Rule = Callable[[str], bool]


def quiet(section: str) -> None:
    """Say nothing of the section that begins."""


def preflight(
    trainer,
    *,
    prompts: int,
    contexts: int,
    rules: Sequence[Rule] = (),
    teachers: Sequence[str] = (),
    bar: Bar = no_bar,
    say: Callable[[str], None] = quiet,
) -> dict[str, Any]:
    """Run every check on a trainer, which trains nothing; the last of them may take its teacher away.

    Args:
        trainer: an OPDTrainer.
        prompts: rows of its data set that the student answers.
        contexts: privileged contexts of each prompt in the PI test, the row's own included.
        rules: what a right answer obeys; none: `math_accuracy` judges where the trainer rewards with it.
        teachers: paths or hub ids of teachers to rank.
        bar: shows progress.
        say: called with the number and the title of each section when it begins.

    Returns:
        the JSON of `opd-trl preflight`: `verdict`, `completions`, `findings`, and further figures of each check.
    """
    state = Preflight(
        trainer,
        prompts=prompts,
        contexts=contexts,
        judge=judge_by(rules) if rules else judge_of_rewards(trainer),
        # A rule about form cannot be met by going on from an answer that has begun otherwise.
        continue_answers=not rules,
        teachers=teachers,
        bar=bar,
    )
    run_checks(state, checks.CHECKS, say)
    return report(state.findings, state.details, completions=state.num_completions)


def refusal(error: ValueError) -> dict[str, Any]:
    """The figures of a pre-flight of a trainer that could not be built: one finding with the reason."""
    finding = Finding("the trainer refuses", "stop", "", str(error), section="templates")
    return report([finding], {}, completions=0)


def report(findings: Sequence[Finding], details: dict[str, Any], *, completions: int) -> dict[str, Any]:
    """The JSON of a pre-flight."""
    return {
        "verdict": worst(findings),
        "completions": completions,
        # Named first, so that whoever reads the file sees what a finding belongs to.
        "findings": [{"section": finding.section} | finding._asdict() for finding in findings],
        **details,
    }


def run_checks(state: Preflight, wanted: Sequence[checks.Check], say: Callable[[str], None] = quiet) -> None:
    """Let the student answer and run checks on what it wrote, each adding its findings to those before."""
    sections = 1 + len(wanted)
    say(f"[1/{sections}] The student answers {state.prompts} prompts")
    let_student_answer(state)
    for place, check in enumerate(wanted, 2):
        say(f"[{place}/{sections}] {check.title}")
        state.findings += check.run(state)


def let_student_answer(state: Preflight) -> int:
    """Fill in the rollouts and how long they took; return how many prompts they answer."""
    trainer = state.trainer
    rows = take_rows(trainer.train_dataset, state.prompts, seed=trainer.args.seed)
    start = time.perf_counter()
    with state.bar("The student answers", num_batches(trainer, rows)) as done:
        state.rollouts = roll_out(trainer, rows, on_batch=done)
    state.generation_seconds = time.perf_counter() - start
    return len(rows)


def judge_by(rules: Sequence[Rule]) -> Judge:
    """A judge by which an answer is right if it obeys all rules.

    >>> judge_by([str.isupper, str.isalpha])(["YES", "no", "NO!"], [{}, {}, {}])
    [1.0, 0.0, 0.0]
    """
    return lambda texts, rows: [float(all(rule(text) for rule in rules)) for text in texts]


def judge_of_rewards(trainer) -> Judge | None:
    """`math_accuracy` as a judge, where the trainer rewards with it and its rows hold answers; else None."""
    columns = trainer.train_dataset.column_names or []
    if math_accuracy not in trainer.reward_funcs or "answer" not in columns:
        return None
    return lambda texts, rows: [score or 0.0 for score in math_accuracy(texts, [row["answer"] for row in rows])]


def verify_loss(trainer, *, prompts: int, top_ks: Sequence[int] | None = None, bar: Bar = no_bar) -> dict[str, Any]:
    """Compare the gradient of a trainer's loss, and of every other form of it, with the exact one.

    Args:
        trainer: an OPDTrainer, which trains nothing.
        prompts: rows of its data set that the student answers.
        top_ks: K of the other forms; None: `TOP_KS`.
        bar: shows progress.

    Returns:
        the JSON of `opd-trl verify-loss`: the fields of `LossReport`, with `verdict` and `advice`.

    Raises:
        ValueError: the loss cannot be checked, see `check_loss`.
    """
    state = Preflight(trainer, prompts=prompts, bar=bar)
    answered = let_student_answer(state)
    with state.over_batches("Gradients of every form") as done:
        found = check_loss(trainer, state.rollouts, top_ks=top_ks or TOP_KS, on_batch=done)
    return figures_of(found, trainer.args, prompts=answered)
