"""`opd-trl verify-loss`: does the configured loss lead to the teacher, on your own models and prompts?"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from .terminal import progress, run_check, verdict


PROG = "opd-trl verify-loss"
OWN_FLAGS: dict[str, dict[str, Any]] = {"top_ks": {"type": int, "nargs": "+"}}
DEFAULTS = {"prompts": 16}

HELP = """\
usage: opd-trl verify-loss --config RECIPE [--prompts N] [--top-ks K ...] [--json FILE] [--FIELD VALUE ...]

Compares the gradient of the configured loss with the exact one over the whole vocabulary: on your student, your
teacher and completions that your student writes for your prompts, in the logits and in the parameters of its last
layer. Beside it every other form of the loss: plain TopK, stop-gradient, renormalised, tail bucket, sampled tail, the
sampled token, for several K. Then the student becomes its own teacher: loss and gradient must be 0. Nothing is trained
or written.

Examples
  # the recipe as it is; 16 prompts take a minute on a small model
  opd-trl verify-loss --config system_prompt/demo
  # would a smaller support do?
  opd-trl verify-loss --config math/opd_qwen3_1.7b_from_8b --loss_top_k 5 --prompts 32
  # what the textbook TopK does: exit status 1
  opd-trl verify-loss --config math/opd_qwen3_1.7b_from_8b --loss_tail drop --stop_gradient false

  --config RECIPE         a name (`opd-trl recipes list`) or a YAML file; its keys are flags too, as for opd and opsd
  --prompts N             prompts of the training set, drawn with the recipe's seed; default 16
  --top-ks K ...          K of the other forms; default 1 5 20 100
  --json FILE             write all figures

Columns: nats a token; cosine and norm against the exact gradient; bias, what is left of the gradient where the teacher
equals the student (a right loss has 0); probability of student and teacher outside the support.

Exit status: 0 rests at the teacher, 1 does not (training would unlearn a perfect student), 2 bad input.
"""


def main(argv: list[str]) -> int:
    """Run `opd-trl verify-loss` and return its exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    return run_check(PROG, argv, check, show)


def check(argv: list[str], console: Console) -> tuple[dict[str, Any], Path | None]:
    """Run the check of a command line; return its figures and the file to write them to.

    Raises:
        ValueError: what is given cannot be checked.
    """
    from ..preflight import inspection
    from ..scripts import subject

    asked = subject.read_subject(argv, OWN_FLAGS, prog=PROG, defaults=DEFAULTS)
    flags = asked.own
    wrong = [k for k in flags.top_ks or () if k < 1]
    if wrong:
        raise ValueError(f"--top-ks must be >= 1, got {wrong[0]}.")
    with subject.build(asked) as trainer:
        figures = inspection.verify_loss(
            trainer,
            prompts=flags.prompts,
            top_ks=flags.top_ks,
            bar=lambda title, total: progress(title, total, console),
        )
    return figures, flags.json


def show(figures: dict[str, Any], console: Console) -> None:
    """Print heading, table, the student as its own teacher, and the advice."""
    from ..preflight.loss import heading, rows_table

    console.print(heading(figures))
    console.print(rows_table(figures["rows"]))
    console.print(
        "\ncosine, norm: of the gradient against the exact one. bias: what is left of it where the teacher equals the "
        "student (the '+1' of a dropped tail), over the exact norm; a right loss has 0. outside: probability off the "
        "support.",
        style="dim",
    )
    console.print(
        f"\nThe student as its own teacher, through the code that trains: loss {figures['twin_loss']:.1e}, largest "
        f"gradient {figures['twin_gradient']:.1e}."
    )
    console.print(Text.assemble("\n", verdict(figures["verdict"]), f": {figures['advice']}"))
