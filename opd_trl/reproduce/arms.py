"""One arm with one seed: what the pre-flight says, training, and what came of it."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig

from ..diagnostics import Monitor
from ..evaluation.boxes import single_boxed_answer
from ..preflight.checks import CHECKS
from ..preflight.findings import worst
from ..preflight.inspection import run_checks
from ..preflight.state import Preflight
from ..trainers.config.opd_config import OPDConfig
from ..trainers.config.opsd_config import OPSDConfig
from ..trainers.monitoring import rule_settings
from ..trainers.opd_trainer import OPDTrainer
from ..trainers.opsd_trainer import OPSDTrainer
from .controls import ConstantPenaltyTrainer
from .foretold import Foretell, kept
from .measures import measure, measure_picks, right_answer
from .models import ON_CPU, fit, load, teacher_text
from .settings import SELF, Arm, Settings
from .task import Row, Source, asked_row, asked_rows


Line = dict[str, Any]
# What the pre-flight checks of an arm: all but the cost, which nobody asks of a tiny model.
FORECAST = [check for check in CHECKS if check.name != "cost"]
# Log names that are kept, and at how many steps.
CURVES = (
    "loss",
    "grad_norm",
    "entropy",
    "support/student_mass",
    "support/teacher_mass",
    "support/overlap",
    "distillation/per_token_divergence",
    "completions/mean_length",
    "completions/repetition",
)
POINTS = 25
# Logged steps at the end whose mean is the figure of a run.
LAST = 10
#: Problems of a part that an evaluation takes; the test part has no more.
HELD_OUT = 192


def run_arm(arm: Arm, seed: int, *, settings: Settings, home: Path) -> Line:
    """Train and measure an arm; `home` is the folder of its seed, with the models; the run goes to `runs/<arm>`."""
    start = time.perf_counter()
    if arm.trainer == "sft":
        text = teacher_text(home / arm.teacher, asked(arm, settings, seed=seed), seed=seed, **limit(settings))
        student, tokenizer = load(home / arm.student)
        fit(student, tokenizer, text, sft_fields(arm, settings), seed=seed)
        line: Line = {"curves": {}, "last": {}, "warnings": None}
    else:
        trainer = build(arm, seed, settings=settings, home=home)
        foretold = foretelling(trainer, arm, settings=settings)
        trainer.train()
        line = histories(trainer.state.log_history) | {"warnings": first_warnings(trainer)} | foretold()
        student, tokenizer = trainer.model, trainer.processing_class
    return line | {
        "after": outcome(arm, student, tokenizer, settings=settings, home=home, seed=seed),
        "seconds": round(time.perf_counter() - start, 1),
    }


def forecast(arm: Arm, seed: int, *, settings: Settings, home: Path) -> Line:
    """The pre-flight's verdict and figures on the trainer of an arm, which trains nothing."""
    preflight = Preflight(build(arm, seed, settings=settings, home=home), **settings.preflight, judge=judge_answers)
    run_checks(preflight, FORECAST)
    return {
        "verdict": worst(preflight.findings),
        "findings": [
            {name: getattr(finding, name) for name in ("section", "name", "verdict", "figure", "value")}
            for finding in preflight.findings
        ],
    }


def arguments(arm: Arm, settings: Settings, *, seed: int, folder: Path) -> OPDConfig:
    """The configuration of an arm that distils."""
    fields = ON_CPU | settings.training | (arm.fields or {})
    config = OPSDConfig if arm.teacher == SELF else OPDConfig
    return config(output_dir=str(folder), seed=seed, data_seed=seed, **fields)


def sft_fields(arm: Arm, settings: Settings) -> dict[str, Any]:
    """The fields of training that SFT has too."""
    known = {field.name for field in dataclasses.fields(SFTConfig)}
    return {name: value for name, value in (settings.training | (arm.fields or {})).items() if name in known}


def limit(settings: Settings) -> dict[str, int]:
    """How long an answer may be that is measured, or that SFT learns from."""
    return {"max_new_tokens": settings.evaluation["max_new_tokens"]}


def asked(arm: Arm, settings: Settings, *, seed: int) -> list[Row]:
    """The rows that an arm trains on."""
    count = settings.training["max_steps"] * settings.training["per_device_train_batch_size"]
    options = {"prompts": arm.prompts, "context": arm.context, "seed": seed, "task": settings.task}
    return asked_rows(count, part="opd", **options)


def foretelling(trainer: OPDTrainer, arm: Arm, *, settings: Settings) -> Callable[[], Line]:
    """Have the trials of a run looked at; the function gives what they said, once the run has ended."""
    if settings.trial is None or arm.prompts == "pick":
        return dict
    rows = problems("rlvr", prompts=arm.prompts, context=arm.context, task=settings.task)[: settings.trial["prompts"]]
    folder = Path(trainer.args.output_dir)
    trainer.add_callback(Foretell(trainer, settings.trial["steps"], rows, judge_answers, folder))
    return lambda: {"foretold": kept(folder)}


def build(arm: Arm, seed: int, *, settings: Settings, home: Path) -> OPDTrainer:
    """The trainer of an arm, whose run goes to `runs/<arm>` in the folder of the seed."""
    args = arguments(arm, settings, seed=seed, folder=home / "runs" / arm.name)
    rows = Dataset.from_list(asked(arm, settings, seed=seed))
    if args.reads_given_text:
        rows = answered(rows, home / arm.teacher, seed=seed, **limit(settings))
    student, tokenizer = load(home / arm.student)
    options = {"args": args, "train_dataset": rows, "processing_class": tokenizer}
    if arm.teacher == SELF:
        return OPSDTrainer(student, **options)
    trainer = ConstantPenaltyTrainer if arm.trainer == "penalty" else OPDTrainer
    return trainer(student, teacher_model=str(home / arm.teacher), **options)


def answered(rows: Dataset, teacher: Path, *, seed: int, max_new_tokens: int) -> Dataset:
    """The same rows with what a teacher answers to each, where that has one box."""
    texts = teacher_text(teacher, rows.to_list(), seed=seed, max_new_tokens=max_new_tokens)["completion"]
    rows = rows.add_column("completion", list(texts))
    return rows.filter(lambda row: single_boxed_answer(row["completion"][0]["content"]).answer is not None)


def judge_answers(texts: list[str], rows: list[Row]) -> list[float]:
    """The judge of the pre-flight: 1.0 for each answer whose box holds the row's answer."""
    return right_answer(texts, [row["answer"] for row in rows])


def first_warnings(trainer: OPDTrainer) -> dict[str, int]:
    """Rules of the monitor that fire in the log of a run -> the step at which each does."""
    settings = rule_settings(trainer.args, privileged=isinstance(trainer, OPSDTrainer))
    rules = Monitor(settings=settings)
    lines = trainer.state.log_history
    return {warning.rule: warning.step for line in lines for warning in rules.update(line["step"], line)}


def histories(log: list[Line]) -> Line:
    """Curves at `POINTS` steps and the means of the last steps, from the lines of a trainer."""
    lines = [line for line in log if "loss" in line]
    places = sorted({round(i * (len(lines) - 1) / (POINTS - 1)) for i in range(POINTS)})
    curves: Line = {"step": [lines[place]["step"] for place in places]}
    last: Line = {}
    for name in CURVES:
        values = [line.get(name) for line in lines]
        if all(value is not None for value in values):
            curves[name] = [rounded(values[place]) for place in places]
            last[name] = rounded(sum(values[-LAST:]) / len(values[-LAST:]))
    return {"curves": curves, "last": last}


def rounded(value: float) -> float:
    """A number cut to five significant digits, as the lines of results hold it."""
    return float(f"{value:.5g}")


def outcome(arm: Arm, model, tokenizer, *, settings: Settings, home: Path, seed: int) -> Line:
    """What the trained student of an arm can do: the `result` of its line."""
    if arm.prompts == "pick":
        teacher, _ = load(home / arm.teacher_model)
        contexts = [None] if arm.context is None else arm.context.split(" or ")
        top_k = (settings.training | (arm.fields or {}))["loss_top_k"]
        return measure_picks(model, teacher, tokenizer, contexts=contexts, top_k=top_k)
    found = on_problems(model, tokenizer, arm.prompts, None, part="test", settings=settings, seed=seed)
    if arm.context is not None:
        trained = on_problems(model, tokenizer, arm.prompts, None, part="opd", settings=settings, seed=seed)
        found |= {f"train_{name}": trained[name] for name in ("accuracy", "greedy")}
    return found


def on_problems(
    model, tokenizer, prompts: str, context: str | None, *, part: str, settings: Settings, seed: int
) -> dict[str, Any]:
    """Figures of a model on problems of a part, the same ones for every arm."""
    rows = problems(part, prompts=prompts, context=context, task=settings.task)
    found = measure(model, tokenizer, rows, **settings.evaluation, seed=seed)
    return {name: value if isinstance(value, str) else rounded(value) for name, value in found.items()}


def problems(part: str, *, prompts: str, context: str | None, task: str) -> list[Row]:
    """The first problems of a part, each once."""
    source = Source(part, seed=0, task=task)
    return [asked_row(source, problem, prompts=prompts, context=context) for problem in source.problems[:HELD_OUT]]


def reference(model: str, prompts: str, context: str | None, seed: int, *, settings: Settings, home: Path) -> Line:
    """Figures of a model that nothing was done to: a student before, or a teacher with its context."""
    if prompts == "pick":
        return {}
    student, tokenizer = load(home / model)
    return on_problems(student, tokenizer, prompts, context, part="test", settings=settings, seed=seed)
