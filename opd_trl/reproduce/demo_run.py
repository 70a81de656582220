"""The demo: a real language model learns a system prompt, judged before and after."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from transformers import PrinterCallback, TrainerCallback

from .. import OPSDTrainer
from ..diagnostics import DISTILLATION_PANELS, Panel, plot_run
from ..durable import write_json
from ..evaluation import compliance, graded_text, one_sentence
from ..models.loading import is_slow_in_bfloat16
from ..models.transformers_engine import greedy_answers
from ..scripts import common, opsd
from ..scripts.recipe_files import find_recipe


RECIPE = "system_prompt/demo"
START = "Arr,"
RULE = f"one finished sentence that starts with {START!r} and does not repeat itself"
MAX_NEW_TOKENS = 40
# Steps between two looks at the held-out questions.
LOOK_EVERY = 16


def run(console, bar, model: str, output: Path, *, steps: int | None, seed: int | None) -> dict[str, Any]:
    """Judge, train with the recipe, judge again, write everything down; return the content of `result.json`.

    Args:
        console: of rich.
        bar: title and total -> a progress bar, which yields what takes the number done and a note.
        model: path of the student.
        output: folder of the results.
        steps, seed: in place of the recipe's.
    """
    start = time.perf_counter()
    overrides = {"model_name_or_path": model, "output_dir": str(output / "adapter"), "max_steps": steps, "seed": seed}
    overrides["dtype"] = "float32" if is_slow_in_bfloat16("cpu") else None
    flags = [text for name, value in overrides.items() if value is not None for text in (f"--{name}", str(value))]
    parsed = opsd.make_parser(prog="opd-trl demo").parse_args_and_config(["--config", RECIPE, *flags])
    folder, rule = find_recipe(RECIPE).parent / "demo", one_sentence(START)
    questions = [json.loads(line)["prompt"] for line in (folder / "test.jsonl").read_text().splitlines()]
    context = json.loads((folder / "privileged_context.json").read_text())
    recorder = Recorder(console, bar, rule, questions)
    trainer = common.build_trainer(OPSDTrainer, *parsed, callbacks=[recorder])
    recorder.attach(trainer)

    answers = {"before": answer(bar, trainer, questions, "Student before")}
    teacher_prompts = [context + question for question in questions]
    answers["teacher"] = answer(bar, trainer, teacher_prompts, "Teacher (with the context)")
    trainer.train()
    answers["after"] = answer(bar, trainer, questions, "Student after")
    trainer.save_model(str(output / "adapter"))

    result = {f"compliance_{who}": compliance(answers[who], rule) for who in ("before", "after", "teacher")}
    result |= {
        "steps": trainer.state.global_step,
        "wall_seconds": round(time.perf_counter() - start, 1),
        "held_out_questions": len(questions),
        "rule": RULE,
        "model": model,
        "dtype": str(trainer.model.dtype).removeprefix("torch."),
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
    write_json(output / "result.json", result)
    write_json(output / "answers.json", rows)
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


def answer(bar, trainer, prompts: list, title: str) -> list[str]:
    """Greedy answers of the student as it is, with a progress bar."""
    with bar(f"{title:<28}", len(prompts)) as done:
        return greedy(trainer, prompts, progress=done)


def greedy(trainer, prompts: list, **options) -> list[str]:
    """Greedy answers of the student as it is."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return greedy_answers(model, trainer.processing_class, prompts, max_new_tokens=MAX_NEW_TOKENS, **options)


class Recorder(TrainerCallback):
    """Shows progress and keeps the log lines in `history`, with the share of answers that follow the rule.

    The held-out questions are answered every `LOOK_EVERY` steps.
    """

    def __init__(self, console, bar, rule, questions: list):
        self.console, self.bar, self.rule, self.questions = console, bar, rule, questions
        self.history: list[dict[str, Any]] = []
        self.bars = contextlib.ExitStack()

    def attach(self, trainer) -> None:
        """Take the place of the trainer's own printing."""
        self.trainer = trainer
        trainer.remove_callback(PrinterCallback)

    def on_train_begin(self, args, state, control, **kwargs):
        self.done = self.bars.enter_context(self.bar(f"{'Training':<28}", state.max_steps))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "distillation/per_token_divergence" not in logs:
            return
        batch = self.trainer.last_completions[-args.generation_batch_size :]
        samples = compliance(map(graded_text, batch), self.rule)
        self.history.append({"step": state.global_step, "samples": samples, **logs})
        text = f"{samples:.0%} of samples follow the rule"
        self.done(state.global_step, text)
        if not self.console.is_terminal and state.global_step % 5 == 0:
            self.console.print(f"step {state.global_step}/{state.max_steps}: {text}")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % LOOK_EVERY == 0 and state.global_step < state.max_steps:
            held_out = compliance(greedy(self.trainer, self.questions), self.rule)
            self.history.append({"step": state.global_step, "held_out": held_out})

    def on_train_end(self, args, state, control, **kwargs):
        self.bars.close()


def report(console, result: dict[str, Any], rows: list[dict[str, str]], output: Path) -> None:
    """Print the table before / after and some answers."""
    table = Table(title=f"Held-out questions answered by the rule ({result['held_out_questions']} questions, greedy)")
    for column in ("", "sees the system prompt", "follows it"):
        table.add_column(column)
    table.add_row("student before", "no", f"{result['compliance_before']:.0%}")
    table.add_row("student after", "no", Text(f"{result['compliance_after']:.0%}", "bold"))
    table.add_row("teacher", "yes", f"{result['compliance_teacher']:.0%}")
    console.print(table)
    for entry in rows[:4]:
        console.print(entry["question"], style="dim")
        console.print(f"  before  {entry['before']!r}\n  after   {entry['after']!r}")
    console.print(
        f"{result['steps']} steps, {result['wall_seconds']:.0f} s. Wrote {output}/result.json, curves.png, "
        f"answers.json and adapter/. Talk to it: opd-trl chat {output}/adapter --teacher"
    )
