"""`opd-trl report`: one HTML page, and PNGs, from the run logs of training runs."""

import argparse
from pathlib import Path

from ..reports.page import write_report
from ..reports.reading import RunLogError
from .terminal import command_parser, refused


DESCRIPTION = """\
Shows a training run, or several side by side, as one HTML page that needs no network: mail it, attach it, open it from
disk. Works on runs that finished, that are in progress and that crashed; run it again to see more.

On the page, in this order: how the run stands and what changed in it; the warnings of the monitor, with their advice
and their place in the curves; what the student wrote at the first step and at the last, every token coloured by its
divergence from the teacher; the curves (hover for values, drag to zoom, smoothing, logarithmic axes); where the
seconds of a step go; last values; the configuration, what differs from the defaults first; versions.

It reads RUN/run_log/, which opd and opsd write where `monitor` is true, the default.

Examples
  # a run, while it trains or afterwards: writes runs/opsd/report.html
  opd-trl report runs/opsd
  # two runs in the same charts, with a table of the settings that differ: writes runs/report.html
  opd-trl report runs/reverse_kl runs/forward_kl
  # for a script and a paper: the figures as JSON, each chart as a PNG
  opd-trl report runs/opsd --json figures.json --png figures/
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of `opd-trl report`."""
    parser = command_parser(
        "opd-trl report", DESCRIPTION, "Exit status: 0 written, 2 bad input (nothing is written).\n"
    )
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=Path, help="output_dir of a training run")
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page; default: RUN/report.html, of several in the folder that holds them all",
    )
    add("--png", type=Path, metavar="DIR", help="also draw each chart into a PNG in this folder; default: none")
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write the figures: state, warnings, last values, cost, settings; default: none",
    )
    return parser


def main(argv: list[str]) -> int:
    """Run `opd-trl report` and return its exit status."""
    args = make_parser().parse_args(argv or ["--help"])
    try:
        figures, written = write_report(args)
    except (RunLogError, OSError) as error:
        return refused("opd-trl report", error)
    for run in figures["runs"]:
        print(f"{run['name']}: {run['headline']}; {run['verdict']}")
        for figure in run["changes"].values():
            print(f"  {figure['in_words']}")
    print("Wrote " + ", ".join(map(str, written[:2])) + (f" and {len(written) - 2} more" if written[2:] else ""))
    return 0
