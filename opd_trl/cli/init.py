"""`opd-trl init`: a recipe, prompts and a rule to start from."""

import argparse
from pathlib import Path

from ..scripts import starter
from .terminal import command_parser, refused


DESCRIPTION = """\
Write a folder to start from: a recipe, prompts to train on, prompts to measure on, and what the teacher reads.

  recipe.yaml    self-distillation of the rule in context.json; with --teacher, distillation from another model
  context.json   what the teacher alone reads (without --teacher): a rule and worked examples. Put your own in place
  prompts.jsonl  200 everyday questions. Replace them by prompts of the kind that your model will get
  test.jsonl     64 others, which training never sees

The commands to run next are printed, and stand at the top of the recipe.
"""
EXAMPLES = """
examples
  opd-trl init my_rule                                             for Qwen3-1.7B, on one GPU
  opd-trl init my_rule --model runs/demo/model                     on a CPU: the model of `opd-trl demo`
  opd-trl init my_math --model Qwen/Qwen3-1.7B --teacher Qwen/Qwen3-8B
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of `opd-trl init`."""
    parser = command_parser("opd-trl init", DESCRIPTION, EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="to write into; may not hold these files yet")
    parser.add_argument("--model", default="Qwen/Qwen3-1.7B", help="the student: folder or hub id (%(default)s)")
    parser.add_argument("--teacher", metavar="MODEL", help="another model as teacher; default: the student itself")
    return parser


def main(argv: list[str]) -> int:
    """Run `opd-trl init` and return its exit status."""
    args = make_parser().parse_args(argv)
    try:
        steps = starter.write(args.folder, args.model, args.teacher)
    except (ValueError, OSError) as error:
        return refused("opd-trl init", error)
    print(f"Wrote {args.folder}. Next:\n" + "\n".join(f"  {step}" for step in steps))
    return 0
