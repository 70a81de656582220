"""`opd-trl preflight`: what will fail, before training."""

import argparse
import contextlib
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
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
from .trials import variants


PROG = "opd-trl preflight"
OWN_FLAGS: dict[str, dict[str, Any]] = {
    "teacher": {"action": "append", "default": []},
    "rule": {"action": "append", "default": []},
    "contexts": {"type": int},
    **variants.FLAGS,
}
DEFAULTS = {"prompts": 64, "contexts": 4}

HELP = """\
usage: opd-trl preflight --config RECIPE [--prompts N] [--rule RULE ...] [--teacher MODEL ...] [--contexts N]
                         [--trial N] [--trial-prompts N] [--rates LIST] [--losses LIST] [--no-trial]
                         [--json FILE] [--FIELD VALUE ...]

Looks at a run before it starts, on your student, teacher and prompts, in two parts. Your models stay as they are, and
nothing is written.

First the student answers some prompts; on these answers every check runs:

{checks}

What is certain has a verdict (ok, fix, stop), with the line of the recipe to change. `info` is worth knowing and
decides nothing: runs that worked and runs that failed had the same figures.

Then a trial: some optimizer steps of this run, at its rate and under its engine, on a copy in a job of its own.
Before, half-way and after it the student answers prompts that are held out. The word: works, harms or unclear.

Examples
  # the recipe as it is
  opd-trl preflight --config math/opd_qwen3_1.7b_from_8b
  # the demo in a few minutes on a CPU; answers judged by a rule
  opd-trl preflight --config system_prompt/demo --prompts 16 --rule one_sentence:Arr,
  # which teacher? ranked by overlap on the student's own text
  opd-trl preflight --config math/opd_qwen3_1.7b_from_8b --teacher Qwen/Qwen3-8B --teacher runs/rlvr
  # which learning rate? twenty steps at each of three, under ZeRO-2
  opd-trl preflight --config math/opd_qwen3_1.7b_from_8b --accelerate_config zero2 --rates 1e-6,2e-6,5e-6

  --config RECIPE         a name (`opd-trl recipes list`) or a YAML file; its keys are flags too, as for opd and opsd
  --prompts N             prompts of the training set, drawn with the recipe's seed; default 64
  --rule RULE             judge answers by a rule (`opd-trl eval --help` lists them); repeat it for several
  --teacher MODEL         a teacher to rank; repeat it. Default: the recipe's alone
  --trial N               optimizer steps of the trial; default 20, or all of a shorter run
  --trial-prompts N       held-out prompts of the trial; default 64, or a quarter of a smaller data set
  --rates LIST            try these learning rates, e.g. 1e-6,2e-6,5e-6, and say which to take
  --losses LIST           try these forms of the loss: full, sampled, renormalize, bucket, sample, drop
  --no-trial              the checks alone
  --contexts N            contexts of the PI test for each prompt: the row's own and others; default 4
  --json FILE             write all figures

Exit status: 0 no check says stop, 1 one does, 2 bad input.
"""
WORDS = {
    "ok": "Nothing stands against this run.",
    "fix": "Something here costs quality: see what to change.",
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
    from ..scripts import recipe_command, subject, trial_launch

    command = recipe_command.training_command(recipe_command.peek(argv))
    argv = argv if command == "opd" else with_teacher(argv)
    asked = subject.read_subject(argv, OWN_FLAGS, prog=PROG, defaults=DEFAULTS)
    flags = asked.own
    rules = [parse_rule(rule) for rule in flags.rule]
    if flags.contexts < 2:
        raise ValueError(f"--contexts must be >= 2, got {flags.contexts}: the row's own and others.")
    runs = variants.variants(flags)
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
            say=say,
        )
        del trainer
    if runs:
        figures |= tried(partial(trial_launch.run_trial, argv, OWN_FLAGS, asked), runs, flags, figures)
    return figures, flags.json


def tried(
    run: Callable[[dict[str, str]], dict[str, Any]],
    runs: Sequence[dict[str, str]],
    flags: argparse.Namespace,
    figures: dict[str, Any],
) -> dict[str, Any]:
    """Try runs out: what is added to the figures, the verdict of all of it with it.

    What nobody has asked for is left out, with the reason, where the checks have stopped the run or where it cannot be
    tried: ValueError only for a trial that the command line asks for.
    """
    if figures["verdict"] == "stop" and not variants.is_asked(flags):
        return {"trials": [], "no_trial": "the checks stop this run. --trial N tries it nevertheless."}
    found: list[dict[str, Any]] = []
    for number, options in enumerate(runs, 1):
        say(f"[trial {number}/{len(runs)}] {variants.named(options)}: {variants.cost(flags, figures)}")
        try:
            found.append({"options": options} | variants.outcome(run(options)))
        except ValueError as error:
            if variants.is_asked(flags):
                raise
            return {"trials": [], "no_trial": f"{error} --no-trial leaves it out."}
    harms = all(trial["verdict"] == "harms" for trial in found)
    return {"trials": found, "verdict": "fix" if harms and figures["verdict"] == "ok" else figures["verdict"]}


def say(section: str) -> None:
    """Show which part begins, on the error stream."""
    print(section, file=sys.stderr, flush=True)


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
    variants.show_trials(figures.get("trials", []), console)
    if "no_trial" in figures:
        console.print(f"\nNo trial: {figures['no_trial']}", highlight=False)
    console.print(Text.assemble("\n", verdict(figures["verdict"]), f": {in_words(figures)}"))


def in_words(figures: dict[str, Any]) -> str:
    """What the verdict means.

    >>> in_words({"verdict": "fix"}), in_words({"verdict": "fix", "trials": [{"verdict": "harms"}]})
    ('Something here costs quality: see what to change.', 'In its trial this run makes the student worse.')
    """
    words = {trial["verdict"] for trial in figures.get("trials", [])}
    if words == {"harms"} and figures["verdict"] != "stop":
        return "In its trial this run makes the student worse."
    return WORDS[figures["verdict"]]


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
