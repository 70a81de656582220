"""`opd-trl reproduce`: the paper's claims on tiny models, from one command."""

import argparse
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from ..locks import LockError, writing
from ..reproduce.settings import Settings, SettingsError, at_rate, read_settings
from ..reproduce.study import Job, all_jobs, key_of, matching, read_lines, run
from ..reproduce.tables import summary
from ..scripts.consoles import plain_console
from ..scripts.recipe_files import find_recipe
from .terminal import command_parser, progress, refused


DESCRIPTION = """
Train tiny models from nothing on a small reasoning task and put the claims of "The Many Faces of On-Policy
Distillation" (arXiv 2605.11182) to the test: the biased TopK gradient, the dropped tail, the aggregate of privileged
contexts, the mismatch of distributions, modes that are not covered, and controls. No network, no GPU.

Every arm starts from the same checkpoints per seed, sees as many prompts, and is measured on problems that nothing
trained on. It is run at four learning rates on seeds of their own and reported at its best one on others. A trial, the
first steps of each run, says whether it works or harms; a table at the end says how often that was right.

  mechanisms    forms of the loss (recipe: reproduce/mechanisms)
  teachers      who teaches: the student with a context, teachers near and far, modes that the student lacks
  sorting       forms of the loss on another task
  larger        forms of the loss on a larger model

Results go to OUTPUT as they come: results.jsonl, report.md, a picture per claim, a run log per arm for
`opd-trl report`. Stopped, the command goes on where it was when it is called again.
"""
EXAMPLES = """
examples
  opd-trl reproduce mechanisms --quick                   one seed, the main arms, a few minutes on 2 cores
  opd-trl reproduce mechanisms                           every arm, four rates, then five seeds: 2 to 6 hours, 2 cores
  opd-trl reproduce mechanisms --only biased_topk        one claim; names of arms do as well
  opd-trl reproduce mechanisms --only full --rate 1e-3   at one learning rate; results are kept apart
  opd-trl reproduce mechanisms --table                   tables and pictures of what there is, nothing is run
  opd-trl report runs/mechanisms/0/runs/plain_5 runs/mechanisms/0/runs/stop_gradient_5
"""
MAIN, RECIPE = "mechanisms", "reproduce/mechanisms"
#: The others are sections of the recipe.
STUDIES = (MAIN, "teachers", "sorting", "larger")
QUICK_SEEDS, SEEDS, MAX_SEEDS = 1, 5, 10


def make_parser() -> argparse.ArgumentParser:
    """The parser of `opd-trl reproduce`."""
    parser = command_parser("opd-trl reproduce", DESCRIPTION, EXAMPLES)
    parser.add_argument("study", choices=STUDIES, help="what to reproduce")
    parser.add_argument("--seeds", type=int, help=f"from 0 on (default: {SEEDS}; with --quick {QUICK_SEEDS})")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a claim or an arm; repeatable")
    parser.add_argument("--quick", action="store_true", help="fewer arms and shorter runs: to see it work")
    parser.add_argument(
        "--output", type=Path, help="folder of results (default: runs/mechanisms, with --quick runs/mechanisms_quick)"
    )
    parser.add_argument("--rate", type=float, help="one learning rate for all arms (default: each arm's best of four)")
    parser.add_argument("--settings", type=Path, help="another settings file (default: the study's own recipe)")
    parser.add_argument("--jobs", type=int, help="runs at a time, each on one core (default: the cores there are)")
    parser.add_argument("--table", action="store_true", help="only tables and pictures of the results that there are")
    return parser


def main(argv: list[str]) -> int:
    """Run `opd-trl reproduce`; exit status 1 where a run failed."""
    args = make_parser().parse_args(argv)
    try:
        return reproduce(args)
    except (SettingsError, LockError, OSError) as error:
        return refused("opd-trl reproduce", error)


def reproduce(args: argparse.Namespace) -> int:
    """Run what is open, then write and print the report; raises SettingsError for what cannot be run."""
    from ..reproduce.pictures import write_report

    settings = settings_of(args)
    seeds = args.seeds if args.seeds is not None else QUICK_SEEDS if args.quick else SEEDS
    workers = args.jobs if args.jobs is not None else len(os.sched_getaffinity(0))
    for flag, value, most in (("--seeds", seeds, MAX_SEEDS), ("--jobs", workers, 64)):
        if not 1 <= value <= most:
            raise SettingsError(f"{flag} must be 1 to {most}, got {value}.")
    arms = settings.chosen(args.only)
    home = args.output or Path("runs") / (args.study + "_quick" * args.quick)
    console = plain_console()

    def jobs() -> list[Job]:
        return all_jobs(settings, range(seeds), arms, read_lines(home))

    with writing(home) as lock:
        failed, ran, wanted = 0, [], jobs()
        while not args.table and not failed and wanted != ran:  # again, once the rates of arms are chosen
            failed = run_open(wanted, settings, home, workers, console, lock)
            ran, wanted = wanted, jobs()
        lines = matching(read_lines(home), wanted)
        if not any(line["kind"] == "arm" for line in lines):
            raise SettingsError(
                f"{home} holds no result of these arms and settings yet. Leave --table away to run them."
            )
        console.print(summary(settings, lines))
        for path in write_report(settings, lines, home):
            console.print(f"wrote {path}")
    return int(failed > 0)


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that a command line means."""
    if args.quick and args.study != MAIN:
        raise SettingsError(f"--quick is for {MAIN} alone.")
    section = "quick" if args.quick else None if args.study == MAIN else args.study
    settings = read_settings(args.settings or find_recipe(RECIPE), section=section)
    return settings if args.rate is None else at_rate(settings, args.rate)


def run_open(jobs, settings, home: Path, workers: int, console, lock: int | None) -> int:
    """Run jobs behind a progress bar; the number of those that failed."""
    done = {key_of(line) for line in read_lines(home)}
    total = sum(job.key not in done for job in jobs)
    if total < len(jobs):
        console.print(f"{len(jobs) - total} of {len(jobs)} steps are done already in {home}.")
    if total == 0:
        return 0
    with callbacks(console, total) as hooks:
        failed = run(jobs, settings=settings, home=home, workers=workers, lock=lock, **hooks)
    if failed:
        names = ", ".join(f"{job.name} (seed {job.seed})" for job in failed[:5])
        console.print(
            f"{len(failed)} steps have no result: {names}. Their output is in {home}/SEED/logs. The same command "
            "tries them again.",
            style="red",
        )
    return len(failed)


@contextlib.contextmanager
def callbacks(console: Console, total: int) -> Iterator[dict[str, Any]]:
    """Show the steps that run, on a progress bar; a line for each step where nobody looks."""
    running: dict[Any, float] = {}
    done = 0
    with progress("", total, console) as advance:

        def show(steps: int) -> None:
            advance(steps, ", ".join(f"{job.name} ({job.seed})" for job in running))

        def started(job) -> None:
            running[job] = time.perf_counter()
            show(done)

        def ended(job, error: str | None) -> None:
            nonlocal done
            seconds = time.perf_counter() - running.pop(job)
            done += 1
            show(done)
            if error is not None:
                console.print(f"{job.kind} {job.name}, seed {job.seed}: {error}", style="red")
            elif not console.is_terminal:
                print(f"{job.kind} {job.name}, seed {job.seed}: {seconds:.0f} s", flush=True)

        yield {"started": started, "ended": ended}
