"""`opd-trl preflight`: what will fail, before training."""

import argparse
import contextlib
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data.files import DataError
from ..evaluation import parse_rule
from ..preflight import checks
from ..preflight.findings import Finding
from .terminal import progress, run_check, verdict


PROG = "opd-trl preflight"
OWN_FLAGS: dict[str, dict[str, Any]] = {
    "teacher": {"action": "append", "default": []},
    "rule": {"action": "append", "default": []},
    "contexts": {"type": int},
}
DEFAULTS = {"prompts": 64, "contexts": 4}

HELP = """\
usage: opd-trl preflight --config RECIPE [--prompts N] [--rule RULE ...] [--teacher MODEL ...] [--contexts N]
                         [--json FILE] [--FIELD VALUE ...]

Looks at a run before it starts, on your student, teacher and prompts. Nothing is trained, nothing written. The student
answers some prompts; on these answers every check runs:

{checks}

Each figure has a threshold with its source, a verdict (ok, fix, stop) and the line of the recipe to change.

Examples
  # the recipe as it is
  opd-trl preflight --config math/opd_qwen3_1.7b_from_8b
  # the demo in a few minutes on a CPU; answers judged by a rule
  opd-trl preflight --config system_prompt/demo --prompts 16 --rule one_sentence:Arr,
  # which teacher? ranked by overlap on the student's own text
  opd-trl preflight --config math/opd_qwen3_1.7b_from_8b --teacher Qwen/Qwen3-8B --teacher runs/rlvr

  --config RECIPE         a name (`opd-trl recipes list`) or a YAML file; its keys are flags too, as for opd and opsd
  --prompts N             prompts of the training set, drawn with the recipe's seed; default 64
  --rule RULE             judge answers by a rule (`opd-trl eval --help` lists them); repeat it for several
  --teacher MODEL         a teacher to rank; repeat it. Default: the recipe's alone
  --contexts N            contexts of the PI test for each prompt: the row's own and others; default 4
  --json FILE             write all figures

Exit status: 0 no check says stop, 1 one does, 2 bad input.
"""
WORDS = {
    "ok": "Nothing stands against this run.",
    "fix": "This run will work, but not as well as it could.",
    "stop": "This run cannot work as it is.",
    "not run": "No check could run.",
}


def main(argv: list[str]) -> int:
    """Run `opd-trl preflight` and return its exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text(), end="")
        return 0
    return run_check(PROG, argv, check, show)


def help_text() -> str:
    """What `opd-trl preflight --help` prints: every check with what it asks."""
    lines = [
        textwrap.fill(item.about, 119, initial_indent=f"  {item.name:<10}  ", subsequent_indent=" " * 14)
        for item in checks.CHECKS
    ]
    return HELP.format(checks="\n".join(lines))


def check(argv: list[str], console: Console) -> tuple[dict[str, Any], Path | None]:
    """Run the checks of a command line; return their figures and the file to write them to.

    Raises:
        ValueError: bad input. What a trainer refuses is a finding.
    """
    from ..preflight import inspection
    from ..scripts import recipe_command, subject

    command = recipe_command.training_command(recipe_command.peek(argv))
    argv = argv if command == "opd" else with_teacher(argv)
    asked = subject.read_subject(argv, OWN_FLAGS, prog=PROG, defaults=DEFAULTS)
    flags = asked.own
    rules = [parse_rule(rule) for rule in flags.rule]
    if flags.contexts < 2:
        raise ValueError(f"--contexts must be >= 2, got {flags.contexts}: the row's own and others.")
    with contextlib.ExitStack() as stack:
        try:
            trainer = stack.enter_context(subject.build(asked))
        except DataError:
            raise
        except ValueError as error:
            return inspection.refusal(error), flags.json
        figures = inspection.preflight(
            trainer,
            prompts=flags.prompts,
            contexts=flags.contexts,
            rules=rules,
            teachers=flags.teacher,
            bar=lambda title, total: progress(title, total, console),
            say=lambda section: print(section, file=sys.stderr, flush=True),
        )
    return figures, flags.json


def with_teacher(argv: list[str]) -> list[str]:
    """The command line of a recipe that names no teacher: the first `--teacher`, if any, becomes its teacher."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--teacher", action="append", nargs="?", default=[])
    teachers = [teacher for teacher in parser.parse_known_args(argv)[0].teacher if teacher]
    return [*argv, "--teacher_model_name_or_path", teachers[0]] if teachers else argv


def show(figures: dict[str, Any], console: Console) -> None:
    """Print the card of a pre-flight: findings by check, what to change, one verdict."""
    findings = [Finding(**finding) for finding in figures["findings"]]
    for item in checks.CHECKS:
        show_section(item.title, item.table(figures), [x for x in findings if x.section == item.name], console)
    # A finding is never lost: where no check has its section, the section is its own title.
    known = {item.name for item in checks.CHECKS}
    for section in dict.fromkeys(x.section for x in findings if x.section not in known):
        show_section(section, None, [x for x in findings if x.section == section], console)
    show_changes(findings, console)
    console.print(Text.assemble("\n", verdict(figures["verdict"]), f": {WORDS[figures['verdict']]}"))


def show_section(title: str, table: Any, findings: Sequence[Finding], console: Console) -> None:
    """Print a title, what stands above the findings, and the findings; nothing where there is neither."""
    if table is None and not findings:
        return
    console.print(f"\n{title}", style="bold")
    if table is not None:
        console.print(table)
    if findings:
        console.print(findings_table(findings))


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row each: verdict, figure, threshold, sentence."""
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=2)
    grid.add_column(ratio=3)
    for finding in findings:
        figure = f"{finding.name}: {finding.figure}" if finding.figure else finding.name
        threshold = f"\n{finding.threshold}" if finding.threshold else ""
        grid.add_row(verdict(finding.verdict), Text.assemble(figure, (threshold, "dim")), finding.sentence)
    return grid


def show_changes(findings: Sequence[Finding], console: Console) -> None:
    """Print what to change, the worst first."""
    changes = [finding for word in ("stop", "fix") for finding in findings if finding.verdict == word]
    if changes:
        console.print("\nWhat to change", style="bold")
    for finding in changes:
        line = finding.change or finding.sentence
        console.print(Text.assemble("  ", verdict(finding.verdict), f" {finding.name}: {line}"))
