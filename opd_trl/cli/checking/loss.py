"""`opd-trl verify-loss`: the figures, and how they are shown."""

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from ...preflight.loss import LossReport, check_loss
from ...preflight.loss_check import TOP_KS, LossRow, judge
from ...preflight.rollouts import num_batches, roll_out, take_rows
from ...scripts.subject import Subject, build, read_subject
from ..terminal import number, progress, verdict


PROG = "opd-trl verify-loss"
OWN_FLAGS: dict[str, dict[str, Any]] = {"top_ks": {"type": int, "nargs": "+"}}
#: Divergences as people say them.
NAMES = {"reverse_kl": "reverse KL", "forward_kl": "forward KL", "jsd": "JSD", "mixed": "mixed divergence"}
DEFAULTS = {"prompts": 16, "top_ks": list(TOP_KS)}


def verify_loss(argv: list[str], console: Console) -> tuple[dict[str, Any], Subject]:
    """Run the check of a command line; return its figures and the parsed command line.

    Raises:
        ValueError: what is given cannot be checked.
    """
    subject = read_subject(argv, OWN_FLAGS, prog=PROG, defaults=DEFAULTS)
    wrong = [k for k in subject.own.top_ks if k < 1]
    if wrong:
        raise ValueError(f"--top-ks must be >= 1, got {wrong[0]}.")
    with build(subject) as trainer:
        rows = take_rows(trainer.train_dataset, subject.own.prompts, seed=subject.training.seed)
        batches = num_batches(trainer, rows)
        with progress("The student answers", batches, console) as done:
            rollouts = roll_out(trainer, rows, on_batch=done)
        with progress("Gradients of every form", batches, console) as done:
            report = check_loss(trainer, rollouts, top_ks=subject.own.top_ks, on_batch=done)
        configured = configuration(trainer.args)
    return figures_of(report, prompts=len(rows), configured=configured), subject


def configuration(args) -> str:
    """The objective in the words of a recipe."""
    if args.loss_support in ("full", "sampled"):
        return f"loss_support: {args.loss_support}" + (
            f", divergence: {args.divergence}" if args.loss_support == "full" else ""
        )
    text = f"divergence: {args.divergence}, loss_support: {args.loss_support}, loss_top_k: {args.loss_top_k}"
    return f"{text}, loss_tail: {args.loss_tail}, stop_gradient: {str(args.stop_gradient).lower()}"


def figures_of(report: LossReport, *, prompts: int, configured: str) -> dict[str, Any]:
    """The check as JSON."""
    word, advice = judge(report.rows, report.exact_loss)
    return {
        **dataclasses.asdict(report),
        "rows": [dataclasses.asdict(row) for row in report.rows],
        "prompts": prompts,
        "configured": configured,
        "verdict": word,
        "advice": advice,
    }


def show(figures: dict[str, Any], console: Console) -> None:
    """Print heading, table, the student as its own teacher, and the advice."""
    name, size = figures["block"]
    console.print(
        f"{figures['num_tokens']} positions of {figures['prompts']} prompts, answered by the student. Exact: the "
        f"{NAMES[figures['divergence']]} over the whole vocabulary, {figures['exact_loss']:.4f} nats a "
        f"token.\nParameter block: {name} ({size:,} numbers).\nConfigured: {figures['configured']}.\n",
        highlight=False,
    )
    console.print(table([LossRow(**row) for row in figures["rows"]]))
    console.print(
        "\ncosine, norm: of the gradient against the exact one. bias: what is left of it where the teacher equals the "
        "student (the '+1' of a dropped tail), over the exact norm; a right loss has 0. outside: probability off the "
        "support.",
        style="dim",
        highlight=False,
    )
    console.print(
        f"\nThe student as its own teacher, through the code that trains: loss {figures['twin_loss']:.1e}, largest "
        f"gradient {figures['twin_gradient']:.1e}.",
        highlight=False,
    )
    console.print(f"\n{verdict(figures['verdict'])}: {figures['advice']}", highlight=False)


def table(rows: list[LossRow]) -> Table:
    """One row for each form of the loss."""
    grid = Table(box=None, pad_edge=False)
    grid.add_column("loss", no_wrap=True)
    for column in ("K", "nats", "cosine\nlogits", "cosine\nblock", "norm", "bias", "student\noutside"):
        grid.add_column(column, justify="right", no_wrap=True)
    grid.add_column("teacher\noutside", justify="right", no_wrap=True)
    for row in rows:
        cells = (
            row.name,
            "" if row.top_k is None else str(row.top_k),
            number(row.loss, ".4f"),
            number(row.cosine),
            number(row.block_cosine),
            number(row.norm_ratio),
            number(row.bias),
            number(row.student_outside),
            number(row.teacher_outside),
        )
        style = "bold" if row is rows[0] else None
        grid.add_row(*cells, style=style)
    return grid
