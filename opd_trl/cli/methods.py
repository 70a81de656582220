"""`opd-trl methods`: the published methods that `method:` sets."""

import argparse
import json
import textwrap

import yaml
from rich.table import Table

from ..scripts.consoles import plain_console
from ..trainers.config.published_methods import METHODS, find_method
from .terminal import refused


DESCRIPTION = """\
List the published methods that the field `method` sets, or show one: its source, its fields, what differs here.

  opd-trl methods                      all of them
  opd-trl methods sdpo                 one, as YAML to copy
  opd-trl opsd --method sdft ...       train with it; a field that is also given by hand wins
  opd-trl recipes show methods/sdft    a complete recipe
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of `opd-trl methods`."""
    parser = argparse.ArgumentParser(
        prog="opd-trl methods", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="show this method alone")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return parser


def main(argv: list[str]) -> int:
    """Run `opd-trl methods` and return its exit status."""
    args = make_parser().parse_args(argv)
    try:
        chosen = METHODS if args.name is None else {args.name: find_method(args.name)}
    except ValueError as error:
        return refused("opd-trl methods", error)
    if args.json:
        print(json.dumps({name: vars(method) for name, method in chosen.items()}, indent=2))
    elif args.name is None:
        print_table()
    else:
        print(as_text(args.name, chosen[args.name]), end="")
    return 0


def print_table() -> None:
    """Print a line for each method: its name, command and title; its source would make it too wide."""
    table = Table("method", "command", "what it is", box=None, pad_edge=False)
    for name, method in METHODS.items():
        table.add_row(name, " or ".join(method.commands), method.title)
    plain_console().print(table)
    print("\nSource, fields and differences of one: opd-trl methods NAME\nRecipes: opd-trl recipes show methods/NAME")


def as_text(name: str, method) -> str:
    """A method as YAML, with source and differences as comments."""
    differs = method.differs or "Nothing differs."
    command = " or ".join(method.commands)
    lines = [f"{name}: {method.title}.", f"Source: {method.address}", f"Command: opd-trl {command}"]
    lines += textwrap.wrap(f"Differs: {differs}", 112)
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(method.fields, sort_keys=False)
