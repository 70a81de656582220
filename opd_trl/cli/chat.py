"""`opd-trl chat`: ask a trained model, and beside it the model before training and the teacher."""

import argparse
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..scripts.consoles import plain_console
from ..scripts.processes import Ended
from ..scripts.quiet import quiet_libraries
from .terminal import command_parser, refused


DESCRIPTION = """\
Ask a trained model, beside the one that it was trained from, on the same questions.

  before   the model before training: without the adapter, or the student that the run log names
  after    the trained model; "model" where it was not trained here
  teacher  with --teacher: the teacher of the run. In self-distillation that is the model before training, reading the
           privileged context of the run, or that of --context

Examples
  opd-trl chat runs/demo/adapter                           # type questions; before and after, side by side
  opd-trl chat runs/demo/adapter --teacher                 # and what the teacher says
  opd-trl chat runs/opsd --ask "What is a comet?"          # one question, no typing
  opd-trl chat Qwen/Qwen3-1.7B --context persona.md        # does the context work at all, before any training?
"""
EPILOG = """\
While you chat: /new begins a new conversation, /quit (or Ctrl-D) ends; Ctrl-C stops an answer. Each side of the
conversation goes on from its own answers. Answers are greedy, so that what differs comes from the training.

Exit status: 0 done, 2 bad input.
"""
STYLES = {"before": "yellow", "after": "bold green", "model": "bold green", "teacher": "cyan"}
# Columns that are narrower cannot be read: then one answer stands below the other.
NARROWEST = 30


def make_parser() -> argparse.ArgumentParser:
    """The parser of `opd-trl chat`."""
    parser = command_parser("opd-trl chat", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a trained model or of an adapter, or a hub id")
    add("--before", metavar="MODEL", help="the model to compare with; default: what it was trained from")
    add("--only", action="store_true", help="the trained model alone")
    add("--teacher", nargs="?", const=True, metavar="MODEL", help="the teacher too; default: that of the run")
    add("--context", metavar="FILE", help="what the teacher reads: a text, or .json of messages; means --teacher")
    add("--system", metavar="TEXT", help="a system message that all of them read")
    add("--ask", action="append", metavar="QUESTION", help="ask this and end; repeat it for a conversation")
    add("--temperature", type=float, default=0.0, help="of sampling; default: 0, greedy")
    add("--max-new-tokens", type=int, default=256, help="longest answer; default: %(default)s")
    add("--seed", type=int, default=0, help="of sampling; default: %(default)s")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="default: as saved, on slow CPUs float32")
    return parser


def main(argv: list[str]) -> int:
    """Run `opd-trl chat` and return its exit status."""
    args = make_parser().parse_args(argv)
    console = plain_console()
    try:
        check(args)
        with quiet_libraries(), console.status("Loading"):
            from ..suites.speakers import load_speakers

            speakers = load_speakers(args)
        for number, question in enumerate(args.ask or typed(console, speakers)):
            if args.ask or not sys.stdin.isatty():
                console.print(Text(f"> {question}", "bold"))
            try:
                answer(question, speakers, args.seed + number, console)
            except ValueError as error:  # too long: who types may go on
                if args.ask:
                    raise
                console.print(str(error), style="red")
    except (ValueError, ImportError) as error:
        return refused("opd-trl chat", error)
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise ValueError for arguments that do not go together or are out of range."""
    if args.only and (args.before or args.teacher or args.context):
        raise ValueError("--only shows the trained model alone. Drop it, or --before, --teacher and --context.")
    if not args.temperature >= 0:
        raise ValueError(f"--temperature must be >= 0, got {args.temperature}.")
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be >= 1, got {args.max_new_tokens}.")


def typed(console: Console, speakers: list) -> Iterator[str]:
    """Questions as they are typed, or the lines of a pipe."""
    if sys.stdin.isatty():
        names = ", ".join(speaker.name for speaker in speakers)
        console.print(f"{names}. /new begins a new conversation, /quit ends.", style="dim")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            for speaker in speakers:
                speaker.forget()
        elif line:
            yield line


def answer(question: str, speakers: list, seed: int, console: Console) -> None:
    """Show the answers of all speakers as they are written: side by side where there is room."""
    width = console.width // len(speakers)
    view = Beside(speakers, console) if console.is_terminal and width >= NARROWEST else Below(speakers, console)
    try:
        with view:
            for speaker in speakers:
                said = speaker.say(question, seed, lambda text, who=speaker.name: view.tell(who, text))
                if not said.finished:
                    view.tell(speaker.name, " [...]")
    except Ended:
        raise
    except KeyboardInterrupt:
        console.print("(stopped)", style="dim")


class Beside:
    """Answers in columns, on a terminal."""

    def __init__(self, speakers: list, console: Console):
        self.texts = {speaker.name: "" for speaker in speakers}
        # Redirected, rich's own moves of the cursor would pass our screen as a text of others, which spells them out.
        options = {"redirect_stdout": False, "redirect_stderr": False}
        self.live = Live(console=console, refresh_per_second=8, vertical_overflow="visible", **options)

    def tell(self, who: str, text: str) -> None:
        """Show a further piece of the answer of the speaker of this name."""
        self.texts[who] += text
        grid = Table(box=None, expand=True, pad_edge=False)
        for name in self.texts:
            grid.add_column(Text(name, STYLES[name]), ratio=1)
        grid.add_row(*map(Text, self.texts.values()))
        self.live.update(grid)

    def __enter__(self) -> "Beside":
        self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.__exit__(*error)


class Below:
    """Answers one below the other: on narrow terminals and in pipes."""

    def __init__(self, speakers: list, console: Console):
        self.console, self.speaks = console, ""
        self.width = max(len(speaker.name) for speaker in speakers)

    def tell(self, who: str, text: str) -> None:
        """Show a further piece of the answer of the speaker of this name."""
        if who != self.speaks:
            between = "\n" if self.speaks else ""
            self.console.print(Text(f"{between}{who:<{self.width}}  ", STYLES[who]), end="")
            self.speaks = who
        self.console.print(Text(text), end="", soft_wrap=True)

    def __enter__(self) -> "Below":
        return self

    def __exit__(self, *error: object) -> None:
        self.console.print()
