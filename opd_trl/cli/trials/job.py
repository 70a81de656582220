"""One process of a trial: the run of a recipe for some steps. `scripts/trial_launch.py` launches it.

What it is asked for stands in the environment as JSON (`VARIABLE`), and the first process writes what came out to a
file. Its own output goes to the error stream: the screen of the command is the parent's.
"""

import importlib
import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ...durable import write_json
from ...evaluation import parse_rule
from ...preflight.inspection import judge_by, judge_of_rewards
from ...preflight.trial.run import try_out
from ...scripts import common
from ...scripts.quiet import quiet_libraries
from ...scripts.trial_launch import VARIABLE


OUT_OF_MEMORY = "out of memory in a step of the run. `opd-trl plan` says what takes it, and what saves it."


class Bar(TrainerCallback):
    """Shows how many steps the trial has made, on the screen of the first process."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(desc="Steps of the trial", unit=" steps", disable=not state.is_world_process_zero)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def train(asked: dict[str, Any], trainer_class: type, *parsed: Any) -> None:
    """In place of `common.train`: build the trainer of a recipe, try it out, and write down what came out."""
    found: dict[str, Any]
    trainer = common.build_trainer(trainer_class, *parsed)
    rules = [parse_rule(rule) for rule in asked["rules"]]
    judge = judge_by(rules) if rules else judge_of_rewards(trainer)
    for noise in (PrinterCallback, ProgressCallback):  # log lines of a run that is none
        trainer.remove_callback(noise)
    trainer.add_callback(Bar)
    try:
        found = asdict(try_out(trainer, steps=asked["steps"], prompts=asked["prompts"], judge=judge))
    except ValueError as error:
        found = {"error": str(error)}
    except RuntimeError as error:
        if should_reduce_batch_size(error):  # of this process, perhaps of no other: its end ends the others
            write_json(Path(asked["output"]), {"error": OUT_OF_MEMORY})
        raise
    if trainer.accelerator.is_main_process:
        write_json(Path(asked["output"]), found)
    trainer.accelerator.end_training()


def main() -> None:
    """Read what is asked for, and train with the arguments of the command line."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asked = json.loads(os.environ[VARIABLE])
    script = importlib.import_module(f"opd_trl.scripts.{asked['command']}")
    with quiet_libraries():
        common.run(script.make_parser(), script.check_arguments, partial(script.main, train=partial(train, asked)))


if __name__ == "__main__":
    main()
