r"""`opd-trl data`: from data sets, generators and teachers to the rows that training and evaluation read."""

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from ..data import jobs
from ..data.adapters import ADAPTERS
from ..data.procedural import task_names
from ..foreign import number
from ..locks import writing
from ..scripts.consoles import plain_console
from .terminal import columns, command_parser, json_object, progress, refused


DESCRIPTION = """\
Makes data ready: rows of `prompt`, `answer` and `solution`, as JSONL. A recipe says what only a teacher sees.

  list        the data sets known by name
  prepare     one of them, or a file of yours: shaped, without duplicates and evaluation rows, split into parts
  procedural  as many rows of a reasoning-gym task as one asks for; no network
  traces      completions that a teacher writes to prompts, for supervised training
  filter      leave out the traces that are cut off, have no boxed answer, are wrong, or go round in circles

Beside every output NAME.jsonl lies NAME.report.json: what was read, kept and rejected, by reason.

examples
  opd-trl data prepare dapo_math --output data/dapo_math.jsonl --parts rlvr=0.5,opd=0.5 --decontaminate math500 aime24
  opd-trl data prepare problems.parquet --columns prompt=question,answer=label --output data/mine.jsonl
  opd-trl data traces --model Qwen/Qwen3-8B --data data/openthoughts.sft.jsonl --output data/traces.jsonl
  opd-trl data filter data/traces.jsonl --output data/sft.jsonl --check-answer

`opd-trl data COMMAND --help` explains a command. Exit status: 0 done, 2 bad input (nothing was written).
"""
PREPARE = r"""
Reads a data set by its name (`opd-trl data list`) or a file (.jsonl, .parquet, .csv, .json), and writes rows of ours.

Two prompts are the same where they differ in case, blanks and Unicode forms alone: the second one is dropped. The
part that a prompt falls into depends on the prompt, the shares and the salt alone, so parts stay disjoint whatever the
order of the rows, the machine or the data set: the same problem in two data sets falls into the same part of both.

examples
  opd-trl data prepare gsm8k --output data/gsm8k.jsonl
  opd-trl data prepare openthoughts_math --output data/openthoughts.jsonl --parts sft=0.4,opd=0.6 \
      --decontaminate math500 aime24 aime25
  opd-trl data prepare my.jsonl --columns prompt=question,solution=worked --require-box \
      --output data/my.jsonl
  opd-trl data prepare wildguardmix --path copies/wildguardmix --output data/safety.jsonl --max-rows 5000
"""
PROCEDURAL = r"""
Writes rows of a task of reasoning-gym (pip install 'opd_trl[procedural]'). The columns `task` and `metadata` are for
its own scoring: reward_funcs: [opd_trl.data.procedural_score].

examples
  opd-trl data procedural --task chain_sum --count 2000 --output data/chain_sum.jsonl
  opd-trl data procedural --task leg_counting --count 5000 --seed 1 --output data/legs.jsonl \
      --parts sft=0.4,rlvr=0.3,opd=0.25,test=0.05
  opd-trl data procedural --task chain_sum --count 500 --options '{"min_terms": 2, "max_terms": 3}' \
      --output data/short.jsonl
"""
TRACES = r"""
A model writes completions to the prompts of a file, in the shape that `trl sft` reads. With a privileged context the
model reads what a teacher reads in `opd-trl opsd`; the trace has the bare prompt. A run that was ended goes on where
it was when it is started again with the same settings: its rows stand in OUTPUT.part until all are there.

examples
  opd-trl data traces --model Qwen/Qwen3-8B --data data/openthoughts.sft.jsonl --output data/traces.jsonl \
      --chat-template-kwargs '{"enable_thinking": false}'
  opd-trl data traces --model runs/teacher --data data/prompts.jsonl --output data/traces.jsonl --samples 4
  opd-trl data traces --model Qwen/Qwen3-1.7B --data data/prompts.jsonl --output data/traces.jsonl \
      --privileged-context-file constitution.txt
"""
FILTER = r"""
The filter of arXiv 2605.11182 for supervised training on a teacher's traces. Rejected are traces that are empty or
cut off, repeat a line or a block, have no (last) boxed answer, or, where asked, a wrong one. Reasons are counted.

examples
  opd-trl data filter data/traces.jsonl --output data/sft.jsonl
  opd-trl data filter data/traces.jsonl --output data/sft.jsonl --check-answer
  opd-trl data filter data/stories.jsonl --output data/sft.jsonl --no-box --max-chars 20000
"""
#: `add_argument` of a parser.
Add = Callable[..., argparse.Action]
INSTRUCTION = r"Put the final answer, and nothing else, into \boxed{}."


def make_parser() -> argparse.ArgumentParser:
    """The parser of `opd-trl data`, with one of its own for each command."""
    parser = command_parser("opd-trl data", DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        form = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(
            name, help=summary, description=description, formatter_class=form, allow_abbrev=False
        )

    listing = command("list", "the data sets known by name", "List the data sets known by name.")
    listing.add_argument("--procedural", action="store_true", help="the tasks of reasoning-gym instead (default: no)")
    add_prepare(command("prepare", "a data set or a file, made ready", PREPARE).add_argument)
    add_procedural(command("procedural", "rows of a generator", PROCEDURAL).add_argument)
    add_traces(command("traces", "completions of a teacher", TRACES).add_argument)
    add_filter(command("filter", "leave out unfit traces", FILTER).add_argument)
    return parser


def add_output(add: Add, *, instruction: str = "") -> None:
    """Options of the commands that write rows in parts, through `add`, the parser's `add_argument`."""
    default = f"default: {instruction}" if instruction else "default: none"
    add("--output", type=Path, required=True, metavar="FILE.jsonl", help="what to write (required)")
    add(
        "--parts",
        metavar="NAME=SHARE,...",
        help="disjoint parts by the hash of the prompt, into FILE.NAME.jsonl each; shares may add up to less than 1 "
        "(default: one file)",
    )
    add("--salt", default="", help="another one gives another split (default: none)")
    add("--max-rows", type=int, metavar="N", help="at most so many rows in each file, chosen by hash (default: all)")
    add(
        "--instruction",
        default=instruction,
        metavar="TEXT",
        help=f"stands below each question ({default.replace('%', '%%')})",
    )
    add("--overwrite", action="store_true", help="replace what is there (default: refuse)")


def add_prepare(add: Add) -> None:
    """Options of `opd-trl data prepare`."""
    add("source", metavar="NAME|FILE", help="a data set by name, or a file")
    add("--split", help="default: the one that `opd-trl data list` names")
    add("--config", help="configuration of the data set (default: likewise)")
    add("--revision", help="commit or tag on the hub, for a result that stays (default: the newest)")
    add("--path", help="a local copy in the hub's layout, or one file of it (default: from the hub)")
    add(
        "--columns",
        type=columns,
        metavar="OURS=THEIRS,...",
        help="columns of a file by our names: prompt, answer, solution, privileged_context, or others to keep "
        "(default: these four, where they are there)",
    )
    add(
        "--require-box",
        nargs="?",
        const="solution",
        metavar="COLUMN",
        help=r"this text must have exactly one \boxed{} answer, which becomes `answer` where there is none (default: "
        "not asked; without COLUMN: solution)",
    )
    add(
        "--decontaminate",
        nargs="+",
        default=[],
        metavar="NAME[:SPLIT]|FILE",
        help="evaluation sets whose prompts may not occur: names such as math500 or gsm8k:test, or files of ours "
        "(default: none)",
    )
    add("--ngram", type=int, default=13, metavar="N", help="words in a row that make a match (default: %(default)s)")
    add_output(add)


def add_procedural(add: Add) -> None:
    """Options of `opd-trl data procedural`."""
    add("--task", required=True, metavar="NAME", help="`opd-trl data list --procedural` (required)")
    add("--count", type=int, default=1000, metavar="N", help="rows to draw (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the generator (default: %(default)s)")
    add("--options", type=json_object, default={}, metavar="JSON", help="of the task (default: none)")
    add_output(add, instruction=INSTRUCTION)


def add_traces(add: Add) -> None:
    """Options of `opd-trl data traces`."""
    add("--model", required=True, help="who writes: hub id or path (required)")
    add("--data", type=Path, required=True, metavar="FILE.jsonl", help="rows with `prompt` (required)")
    add("--output", type=Path, required=True, metavar="FILE.jsonl", help="what to write (required)")
    add("--revision", help="of the model (default: the newest)")
    add("--dtype", default="auto", help="of the weights (default: %(default)s)")
    add("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    add("--temperature", type=number, default=0.3, help="0 is greedy (default: %(default)s)")
    add("--top-p", type=number, default=0.95, help="mass that is sampled from (default: %(default)s)")
    add("--max-new-tokens", type=int, default=4096, help="longest trace (default: %(default)s)")
    add("--samples", type=int, default=1, help="traces per prompt (default: %(default)s)")
    add("--batch-size", type=int, default=16, help="traces written together (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--max-rows", type=int, metavar="N", help="only the first N prompts (default: all)")
    add("--chat-template-kwargs", type=json_object, default={}, metavar="JSON", help="default: none")
    add("--privileged-builder", metavar="NAME", help="as in `opd-trl opsd` (default: no context)")
    add("--privileged-template", metavar="JINJA", help="in place of its wording (default: its own)")
    add("--privileged-context-column", default="privileged_context", help="default: %(default)s")
    add("--privileged-context", metavar="TEXT", help="one for all rows (default: the column)")
    add("--privileged-context-file", metavar="FILE", help="the same from a file (default: the column)")
    add("--overwrite", action="store_true", help="begin again and replace (default: go on, or refuse)")


def add_filter(add: Add) -> None:
    """Options of `opd-trl data filter`."""
    add("source", type=Path, metavar="FILE", help="traces: rows with `completion`")
    add("--output", type=Path, required=True, metavar="FILE.jsonl", help="what to write (required)")
    add("--check-answer", action="store_true", help="reject wrong answers (math-verify; default: no)")
    add("--no-box", action="store_true", help="do not ask for a boxed answer (default: ask)")
    add("--line-chars", type=int, default=20, help="shortest line that counts (default: %(default)s)")
    add("--line-repeats", type=int, default=5, help="so often is too often (default: %(default)s)")
    add("--block-chars", type=int, default=100, help="length of a block (default: %(default)s)")
    add("--block-repeats", type=int, default=5, help="so often is too often (default: %(default)s)")
    add("--max-chars", type=int, metavar="N", help="reject longer traces (default: no limit)")
    add("--overwrite", action="store_true", help="replace what is there (default: refuse)")


def main(argv: list[str]) -> int:
    """Run `opd-trl data` and return its exit status."""
    args = make_parser().parse_args(argv)
    work: dict[str, Callable[[], None]] = {
        "list": lambda: run_list(args),
        "traces": lambda: run_traces(args),
        "prepare": lambda: show(*jobs.prepare_rows(args, progress)),
        "procedural": lambda: show(*jobs.draw_procedural(args)),
        "filter": lambda: show(*jobs.filter_traces(args, progress)),
    }
    try:
        with contextlib.nullcontext() if args.command == "list" else writing(args.output, folder=False):
            work[args.command]()
    except ValueError as error:  # DataError among them
        return refused(f"opd-trl data {args.command}", error)
    return 0


def run_list(args: argparse.Namespace) -> None:
    """Print the data sets, or the tasks of reasoning-gym, that are known by name."""
    console = plain_console()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no edge to break lines at
    if args.procedural:
        console.print(", ".join(task_names()))
        return
    table = Table("name", "on the hub", "split", "what it is", box=None, pad_edge=False)
    for name, adapter in ADAPTERS.items():
        place = adapter.hub_id + (f" ({adapter.config})" if adapter.config else "")
        table.add_row(name, place, adapter.split, adapter.about + (" [gated]" if adapter.gated else ""))
    console.print(table)


def run_traces(args: argparse.Namespace) -> None:
    """Let a model write, and say what was written."""
    report = jobs.write_traces(args, progress)
    print(
        f"Wrote {report['traces']} traces to {args.output}, {report['truncated']} of them cut off at "
        f"{args.max_new_tokens} tokens. Next: opd-trl data filter {args.output} --output FILE.jsonl"
    )


def show(report: dict[str, Any], file: Path) -> None:
    """Print how many rows were read, kept and rejected, and in which files they are."""
    table = Table("", "rows", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    table.add_row("read", f"{report['read']:,}")
    for reason, count in report["rejected"].items():
        table.add_row(f"  rejected: {reason}", f"{count:,}")
    table.add_row("kept", f"{report['kept']:,}")
    for name, count in report["files"].items():
        table.add_row(f"  in {name}", f"{count:,}")
    if report.get("left_over"):
        table.add_row("  in no file", f"{report['left_over']:,}")
    console = plain_console()
    console.print(table)
    console.print(f"Report: {file}", soft_wrap=True)
