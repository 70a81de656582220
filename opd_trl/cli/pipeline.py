"""`opd-trl pipeline`: the stages of a file, each a process of its own, resumable and recorded."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..credentials import without_secrets
from ..foreign import parse_json
from ..locks import locked
from ..scripts.code_of_others import code_of_stages, name_code
from ..scripts.consoles import plain_console
from ..scripts.processes import Ended
from .pipelines.arguments import command_lines
from .pipelines.document import read_pipeline
from .pipelines.record import read_record
from .pipelines.runner import Outcome, Run, execute
from .terminal import command_parser, refused


NAME = "opd-trl pipeline"
DESCRIPTION = """\
Runs the stages of a YAML file in their order: data, SFT, a teacher by GRPO, OPD, evaluation. Every stage is a command
of TRL, one of ours or a Python script, run as a process of its own. A stage may refer to what an earlier one wrote.

All stages are checked before the first one starts. A second run skips what is unchanged (command, recipe, inputs and
outputs are compared by hash) and runs everything from the first change on; training that was ended goes on from its
last whole checkpoint. What lies in the place of an output is kept under another name, never removed.

Written to the pipeline's folder (its `output_dir`):
  pipeline.json      command, hashes of arguments, inputs and outputs, times, exit status, versions, of every stage
  logs/STAGE.log     everything that a stage prints
  configs/STAGE.yaml the recipe of a stage with all that it extends
"""
EXAMPLES = """\
examples
  opd-trl pipeline --config smoke/pipeline                          two minutes on a CPU, no network
  opd-trl pipeline --config math/pipeline --dry-run                 check all stages and print their command lines
  opd-trl pipeline --config mine.yaml --from opd --set opd.learning_rate=1e-6
                                                                    change one stage, and run it and what follows

Exit status: 0 all stages done, 1 a stage failed, 2 bad input (nothing was run), 128 + N ended by signal N.
A description of the file: docs/pipeline.md.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of `opd-trl pipeline`."""
    parser = command_parser(NAME, DESCRIPTION, EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE", help="the pipeline, by path or name (required)")
    parser.add_argument(
        "--from",
        dest="first",
        metavar="STAGE",
        help="run this stage in any case, and all that follow; take those before it as they are (default: the first "
        "stage that has changed)",
    )
    parser.add_argument("--until", dest="last", metavar="STAGE", help="stop after this stage (default: the last one)")
    parser.add_argument(
        "--no-code",
        action="store_true",
        help="refuse stages that run code of others: scripts, import paths, trust_remote_code, variables of `env` "
        "(default: name it, and run)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check, print what would run and why (default: run)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="STAGE.KEY=VALUE",
        help="an argument in place of the file's, the value as YAML; output_dir=PATH for the pipeline's folder; may "
        "be given again (default: none)",
    )
    return parser


def main(argv: list[str]) -> int:
    """Run `opd-trl pipeline` and return its exit status."""
    args = make_parser().parse_args(argv)
    try:
        return run(args)
    except ValueError as error:
        return refused(NAME, error)
    except Ended as ended:
        print(f"{NAME}: {ended}", file=sys.stderr)
        return 128 + ended.number


def run(args: argparse.Namespace) -> int:
    """Check the pipeline, then run it; raises ValueError, before anything is run, where that is not possible."""
    console = plain_console()
    pipeline = read_pipeline(args.config, args.settings)
    first = pipeline.index(args.first, option="--from") if args.first else 0
    last = pipeline.index(args.last, option="--until") if args.last else len(pipeline.stages) - 1
    if first > last:
        raise ValueError(f"--until {args.last} comes before --from {args.first}.")
    stages = pipeline.stages[first : last + 1]
    told = {stage.name: (stage.command.name, stage.values) for stage in stages}
    name_code(code_of_stages(told), prog=NAME, refuse=args.no_code)
    lines = command_lines(stages, without_gpu=args.dry_run)

    def start() -> tuple[Run, list]:
        run = Run(pipeline, lines, read_record(pipeline.folder), say=lambda text: print(text, flush=True))
        run.check_first(first)
        planned = run.plan(first=first, last=last, forced=args.first is not None)
        run.check_free(planned)
        return run, planned

    started = start()
    if args.dry_run:
        print_plan(console, *started)
        return 0
    pipeline.folder.mkdir(parents=True, exist_ok=True)
    with locked(pipeline.folder / LOCK, str(pipeline.folder), IN_USE) as lock:
        # Read again: the run that held the lock until now may have changed it.
        run, planned = start()
        outcomes, status = execute(run, planned, lock)
    print_outcomes(console, outcomes)
    return status


LOCK = "pipeline.lock"
IN_USE = "runs this pipeline. Wait for it, end it, or take another folder with --set output_dir=PATH."
RESULT = "result.json"
COLOURS = {"ran": "green", "skipped": "cyan", "failed": "red", "killed": "red", "not run": "dim"}
# Figures of a result that are shown.
SHOWN = 3


def print_outcomes(console: Any, outcomes: list[Outcome]) -> None:
    """Print a row for each stage: state, seconds, outputs, key figures."""
    table = Table("stage", "state", "seconds", "outputs", "figures", box=None, pad_edge=False)
    for outcome in outcomes:
        table.add_row(
            outcome.stage.name,
            Text(outcome.state, style=COLOURS[outcome.state]),
            "" if outcome.seconds is None else f"{outcome.seconds:.1f}",
            "\n".join(outcome.stage.outputs),
            Text("\n".join(figures(outcome)) if outcome.state in ("ran", "skipped") else ""),
        )
    console.print()
    console.print(table)
    for outcome in outcomes:
        if outcome.reason:
            console.print(f"{outcome.stage.name}: {outcome.reason}", style="red")


def print_plan(console: Any, run: Run, planned: list) -> None:
    """Print which stages would run, why, and with which command lines."""
    for number, (stage, reason) in enumerate(planned, 1):
        state = f"runs: {reason}" if reason else "is skipped: command, inputs and outputs are unchanged"
        console.print(f"[{number}/{len(planned)}] {stage.name} {state}")
        print(f"    {shlex.join(without_secrets(run.command(stage)))}")


def figures(outcome: Outcome) -> list[str]:
    """The first figures of the results that a stage wrote, with their intervals; see `opd-trl eval`."""
    lines = []
    for output in outcome.stage.outputs:
        path = Path(output) / RESULT
        if path.is_file():
            try:
                found = parse_json(path.read_bytes()).get("figures", {})
                lines += [as_line(name, figure) for name, figure in list(found.items())[:SHOWN]]
            except (ValueError, AttributeError, TypeError, KeyError):  # another program's result.json
                continue
    return lines


def as_line(name: str, figure: dict[str, Any]) -> str:
    """A figure of a result and its interval, as the table of stages shows them.

    >>> as_line("avg@8", {"value": 0.28241, "low": 0.2674, "high": 0.298})
    'avg@8 0.282 [0.267, 0.298]'
    """
    return "{} {:.3g} [{:.3g}, {:.3g}]".format(name, *(figure[key] for key in ("value", "low", "high")))
