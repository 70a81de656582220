"""How a pre-flight is shown: findings by section, what to change, one verdict."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...preflight.clustered import WIDTH
from ...preflight.findings import Finding
from ...preflight.loss_check import LossRow
from ..terminal import number, verdict
from .loss import table
from .prompts import show_prompts
from .ranking import FIGURES


TITLES = {
    "templates": "Templates",
    "prefixes": "Teacher on student prefixes (mechanism 1)",
    "coverage": "Coverage",
    "answers": "Answers",
    "loss": "Loss (mechanism 2)",
    "context": "Privileged context (mechanism 3)",
    "cost": "Cost",
}
WORDS = {
    "ok": "Nothing stands against this run.",
    "fix": "This run will work, but not as well as it could.",
    "stop": "This run cannot work as it is.",
}


def show(figures: dict[str, Any], console: Console) -> None:
    """Print a pre-flight."""
    findings = [Finding(**finding) for finding in figures["findings"]]
    for section, title in TITLES.items():
        of_section = [finding for finding in findings if finding.section == section]
        if not of_section:
            continue
        console.print(f"\n[bold]{title}[/]")
        if section == "templates" and "prompts" in figures:
            show_prompts(figures["prompts"], console)
        if section == "loss" and "loss" in figures:
            console.print(table([LossRow(**row) for row in figures["loss"]["rows"]]))
        if section == "prefixes" and "tokens" in figures:
            console.print(quarters_table(figures["tokens"]["by_quarter"]))
        if section == "context" and "context" in figures:
            console.print(context_table(figures["context"]))
        console.print(findings_table(of_section))
    if "ranking" in figures:
        console.print("\n[bold]Teachers, the best overlap first[/]")
        console.print(ranking_table(figures["ranking"]))
    show_changes(findings, console)
    console.print(f"\n{verdict(figures['verdict'])}: {WORDS[figures['verdict']]}", highlight=False)


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row each: verdict, figure, threshold, sentence."""
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=2)
    grid.add_column(ratio=3)
    for finding in findings:
        figure = f"{finding.name}: {finding.figure}" if finding.figure else finding.name
        threshold = f"\n[dim]{escape(finding.threshold)}[/]" if finding.threshold else ""
        grid.add_row(verdict(finding.verdict), escape(figure) + threshold, escape(finding.sentence))
    return grid


def quarters_table(figures: dict[str, list[float]]) -> Table:
    """Figures by quarter of the completions."""
    grid = Table("by quarter of the completion", box=None, pad_edge=False)
    for quarter in range(4):
        grid.add_column(str(quarter + 1), justify="right")
    for name, values in figures.items():
        grid.add_row(name.replace("_", " "), *(f"{value:.3f}" for value in values))
    return grid


def context_table(figures: dict[str, Any]) -> Table:
    """The student's divergence to the teacher under each kind of context."""
    kinds = {
        "own": "the row's own context",
        "other": "another row's",
        "empty": "none",
        "alone": "the context without the question",
        "moved": "teacher without against teacher with its own",
    }
    grid = Table("the teacher reads", "nats a token", "± (95 %)", box=None, pad_edge=False)
    for kind, said in kinds.items():
        if figures[kind] is not None:
            value, error = figures[kind]
            grid.add_row(said, f"{value:.4f}", f"{WIDTH * error:.4f}")
    return grid


def ranking_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Teachers side by side."""
    grid = Table("teacher", box=None, pad_edge=False)
    for name in ("overlap", "reverse KL", "outside", "NLL of its text", "its answers"):
        grid.add_column(name, justify="right")
    for row in rows:
        grid.add_row(row["name"], *(number(row[name]) for name in FIGURES))
        if row["refused"]:
            grid.add_row(f"[dim]refused: {escape(row['refused'])}[/]")
    return grid


def show_changes(findings: Sequence[Finding], console: Console) -> None:
    """What to change, the worst first."""
    changes = [finding for word in ("stop", "fix") for finding in findings if finding.verdict == word]
    if changes:
        console.print("\n[bold]What to change[/]")
    for finding in changes:
        line = finding.change or finding.sentence
        console.print(f"  {verdict(finding.verdict)} {escape(finding.name)}: {escape(line)}", highlight=False)
