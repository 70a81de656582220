"""The methods since May 2026 against the default, on the task and models of `opd-trl reproduce mechanisms`.

    python benchmarks/newer_methods.py runs/newer --seeds 0 1       # a line of results.jsonl for each arm and seed
    python benchmarks/newer_methods.py runs/newer --table

Two groups: a weak student learns to solve from the finished model (rate 1e-3), and the finished model answers quick
prompts better by rewards (2e-4, 8 completions of each prompt) or by its own worked solutions (1e-3). A run goes on
where it was stopped.
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from opd_trl import OPDTrainer, OPSDTrainer
from opd_trl.reproduce import models
from opd_trl.reproduce.arms import arguments, on_problems, reference
from opd_trl.reproduce.measures import right_answer
from opd_trl.reproduce.settings import SELF, Arm, Settings, read_settings
from opd_trl.reproduce.task import asked_rows
from opd_trl.scripts.recipe_files import find_recipe


WEAK = {"student": "weak", "teacher": "own", "prompts": "solve"}
QUICK = {"student": "own", "teacher": SELF, "prompts": "quick", "context": "solution"}
REWARDED = {"learning_rate": 2.0e-4, "num_generations": 8, "temperature": 1.0}
#: Name -> group, label, fields of the configuration, are there rewards.
ARMS: dict[str, tuple[dict[str, Any], str, dict[str, Any], bool]] = {
    "default": (WEAK, "default: renormalised Top-20", {}, False),
    "sampled": (WEAK, "sampled token, no weights", {"loss_support": "sampled"}, False),
    "iw_opd": (WEAK, "`iw_opd`", {"method": "iw_opd"}, False),
    "mask": (WEAK, "`trust_region`, mask", {"method": "trust_region"}, False),
    "clip": (WEAK, "`trust_region`, clip", {"method": "trust_region", "loss_trust_outside": "clip"}, False),
    "grpo": (QUICK, "GRPO alone", REWARDED | {"distillation_coef": 0.0}, True),
    "rlsd": (QUICK, "`rlsd`", {"method": "rlsd"} | REWARDED, True),
    "sdar": (QUICK, "`sdar`", {"method": "sdar"} | REWARDED, True),
    "solution": (QUICK, "OPSD, default loss, the solution", {}, False),
    "other_solution": (QUICK, "the same, another row's: `op2sd`", {"shuffle_privileged_context": True}, False),
}


def arm_of(name: str) -> Arm:
    """The arm of a name, as the study knows arms."""
    group, label, fields, _ = ARMS[name]
    return Arm(name=name, label=label, fields=fields, **group)


def run(name: str, seed: int, settings: Settings, home: Path) -> dict[str, Any]:
    """Train an arm and measure its student on the problems that nobody was trained on."""
    arm = arm_of(name)
    args = arguments(arm, settings, seed=seed, folder=home / "runs" / name)
    prompts = args.max_steps * args.per_device_train_batch_size // args.num_generations
    rows = asked_rows(prompts, part="opd", prompts=arm.prompts, context=arm.context, seed=seed)
    student, tokenizer = models.load(home / arm.student)
    options = {"args": args, "train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    if ARMS[name][3]:
        options["reward_funcs"] = right_answer
    if arm.teacher == SELF:
        trainer = OPSDTrainer(student, **options)
    else:
        trainer = OPDTrainer(student, teacher_model=str(home / arm.teacher), **options)
    trainer.train()
    return on_problems(trainer.model, tokenizer, arm.prompts, None, part="test", settings=settings, seed=seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--table", action="store_true", help="print what there is and run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = read_settings(find_recipe("reproduce/mechanisms"))
    settings = dataclasses.replace(settings, training=settings.training | {"learning_rate": 1.0e-3})
    results = args.home / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if args.table:
        return print_table(lines)
    done = {(line["arm"], line["seed"]) for line in lines}
    for seed in args.seeds:
        home = args.home / str(seed)
        if not (home / "weak").exists():
            models.own(home, settings, seed)
        for name in args.arms:
            for key in [key for key in (f"before/{arm_of(name).prompts}", name) if (key, seed) not in done]:
                line = {"arm": key, "seed": seed} | figures_of(key, seed, settings, home)
                done.add((key, seed))
                with results.open("a") as file:
                    print(json.dumps(line), file=file, flush=True)


def figures_of(key: str, seed: int, settings: Settings, home: Path) -> dict[str, Any]:
    """What an arm ends with, or what its student can do before: `before/<prompts>`."""
    if key in ARMS:
        return run(key, seed, settings, home)
    student = {"solve": WEAK["student"], "quick": QUICK["student"]}
    prompts = key.removeprefix("before/")
    return reference(student[prompts], prompts, None, seed, settings=settings, home=home)


def print_table(lines: list[dict[str, Any]]) -> None:
    """Markdown: right answers of each arm by seed, before and after."""
    seeds = sorted({line["seed"] for line in lines})
    found = {(line["arm"], line["seed"]): line for line in lines}
    for prompts in ("solve", "quick"):
        names = [f"before/{prompts}", *(name for name in ARMS if ARMS[name][0]["prompts"] == prompts)]
        print(f"| `{prompts}` prompts | mean |", *(f"seed {seed} |" for seed in seeds), "length |")
        print("|---" * (3 + len(seeds)) + "|")
        for name in names:
            mine = [found[name, seed] for seed in seeds if (name, seed) in found]
            if mine:
                label = "before" if name not in ARMS else ARMS[name][1]
                mean, length = (statistics.mean(line[key] for line in mine) for key in ("accuracy", "length"))
                shown = [f"{found[name, x]['accuracy']:.2f} |" if (name, x) in found else "- |" for x in seeds]
                print(f"| {label} | {mean:.2f} |", *shown, f"{length:.0f} |")
        print()


if __name__ == "__main__":
    main()
