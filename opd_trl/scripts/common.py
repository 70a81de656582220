"""What `opd.py` and `opsd.py` share: arguments, models, rewards, and the run from data set to saved model."""

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import DatasetMixtureConfig, ModelConfig, get_peft_config, get_quantization_config
from trl.scripts.grpo import GRPOScriptArguments

from ..addresses import is_url
from ..credentials import api_key
from ..data.prompts import RowError
from ..durable import in_a_line
from ..locks import LockError
from ..models.lora_folders import is_adapter
from ..privileged import get_builder, read_shared_context
from ..screen import guarded_screen
from ..teachers import TeacherServerError
from ..trainers.monitoring import is_told_to_end
from ..trainers.placement import TeacherError
from ..trainers.resume import CheckpointError, only_training, save_model, way_on
from .checkpoints import check_output, how_to_go_on, remove_checkpoints, wanted_checkpoint
from .consoles import spell_out_controls
from .data_files import DataError, check_data_arguments, load_splits, looks_local
from .launching import INTERRUPTED, TERMINATED
from .log_lines import shorten_lines
from .parser import StrictParser
from .processes import leave, one_interrupt
from .reward_names import imported, reward_func


#: Trainer class and arguments of the script -> a run.
Train = Callable[..., None]


@dataclass
class OPDScriptArguments(GRPOScriptArguments):
    """Arguments of the training scripts: the data set, as in all of TRL's scripts, and rewards to mix in.

    Args:
        reward_funcs: `math_accuracy` (column `answer`), names of TRL's reward functions (`accuracy_reward`,
            `reasoning_accuracy_reward`, `think_format_reward`, `get_soft_overlong_punishment`) or dotted import
            paths. None: distillation alone.
        reward_model_name_or_path: a reward model, used beside them.
        tools: import paths of functions that the student may call while it answers.
        environment_factory: import path of a class, whose methods are tools and whose `reset` begins each rollout.
        overwrite_output_dir: begin anew in an `output_dir` that holds checkpoints of an earlier run, and remove them.
        no_code: refuse what would run code of others; see `code_of_others`.
    """

    tools: list[str] | None = field(
        default=None, metadata={"help": "Import paths of functions that the student may call while it answers."}
    )
    environment_factory: str | None = field(
        default=None,
        metadata={"help": "Import path of a class of environments: its methods are tools, `reset` begins a rollout."},
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Begin anew in an output_dir with checkpoints of an earlier run, and remove those."},
    )
    no_code: bool = field(
        default=False,
        metadata={
            "help": "Refuse code of others: import paths, trust_remote_code, hub kernels, pickles, and variables of "
            "`env` that may load a program. Without it each is named before it runs."
        },
    )


def make_parser(name: str, config_class: type, subparsers: argparse._SubParsersAction | None, prog: str | None):
    """Return the strict parser of a training script: script, training, model and data-mixture arguments."""
    dataclass_types = (OPDScriptArguments, config_class, ModelConfig, DatasetMixtureConfig)
    if subparsers is not None:
        return subparsers.add_parser(name, help=f"Run the {name} training script", dataclass_types=dataclass_types)
    return StrictParser(dataclass_types, prog=prog)


def check_arguments(script_args, training_args, model_args, dataset_args) -> None:
    """Check what needs no model and no data to be read.

    Raises:
        ValueError: no student or no data set; a key that cannot be sent to the teacher's server; a local model or data
            set, a file of the privileged context, a builder, a reward function or a checkpoint to resume from that
            does not exist; a tracker that is not installed.
    """
    if os.getcwd() not in sys.path and not script_args.no_code:  # for builders and reward functions of the user's own
        sys.path.append(os.getcwd())  # last: a file there takes the place of no package
    if not model_args.model_name_or_path:
        raise ValueError("no student is given. Set model_name_or_path to a hub id or a path, e.g. Qwen/Qwen3-1.7B.")
    models = [
        ("model_name_or_path", model_args.model_name_or_path),
        ("teacher_model_name_or_path", training_args.teacher_model_name_or_path),
        *((f"teachers: {name}", teacher) for name, teacher in (training_args.teachers or {}).items()),
    ]
    for name, model in models:
        if model and not is_url(model) and looks_local(model) and not Path(model).expanduser().exists():
            raise ValueError(
                f"{name}={model!r} does not exist (looked in {Path.cwd()}). Give a folder with a saved model or "
                "a hub id such as Qwen/Qwen3-1.7B. A recipe's header says how to make its model."
            )
    if any(map(is_url, (training_args.teacher_server_url, *(model for _, model in models)))):
        api_key()
    check_data_arguments(script_args, dataset_args)
    read_shared_context(training_args.privileged_context, training_args.privileged_context_file)
    get_builder(training_args.privileged_builder, template=training_args.privileged_template)
    for name in script_args.reward_funcs or []:
        reward_func(name)
    agent_options(script_args)
    check_trackers(training_args.report_to)
    check_output(training_args, overwrite=script_args.overwrite_output_dir)


#: Tracker -> packages of which one makes it work.
TRACKERS = {"wandb": ("wandb",), "trackio": ("trackio",), "tensorboard": ("tensorboard", "tensorboardX")}


def check_trackers(names: list[str]) -> None:
    """Raise ValueError for a tracker that is not installed, before a model is loaded."""
    for name in set(names) & TRACKERS.keys():
        if not any(importlib.util.find_spec(package) for package in TRACKERS[name]):
            raise ValueError(
                f'report_to: {name} is not installed. Run pip install "opd_trl[{name}]", or leave it out.'
            )


def reward_funcs(script_args) -> list[Any] | None:
    """Return the rewards to mix in, or None for distillation alone."""
    models = [script_args.reward_model_name_or_path] if script_args.reward_model_name_or_path else []
    return models + [reward_func(name) for name in script_args.reward_funcs or []] or None


def agent_options(script_args) -> dict[str, Any]:
    """The tools and the environment of the rollouts, where there are any; ValueError for what cannot be imported."""
    options: dict[str, Any] = {}
    if script_args.tools:
        options["tools"] = [imported(name, "tools") for name in script_args.tools]
    if script_args.environment_factory:
        options["environment_factory"] = imported(script_args.environment_factory, "environment_factory")
    return options


def model_init_kwargs(training_args, model_args) -> dict[str, Any]:
    """Return the student's `from_pretrained` arguments; what `model_init_kwargs` gives by hand wins."""
    return {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def build_trainer(trainer_class: type, script_args, training_args, model_args, dataset_args, **options):
    """Load the data (DataError where that fails) and build the trainer; `options` are further arguments of it."""
    evaluate = training_args.eval_strategy != "no"
    train_dataset, eval_dataset = load_splits(script_args, dataset_args, evaluate=evaluate)
    training_args.model_init_kwargs = model_init_kwargs(training_args, model_args)
    return trainer_class(
        model=model_args.model_name_or_path,
        reward_funcs=reward_funcs(script_args),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
        **agent_options(script_args),
        **options,
    )


def train(trainer_class: type, script_args, training_args, model_args, dataset_args) -> None:
    """Train, save, push where asked, and end the trackers and the process group."""
    with only_training(training_args):
        _train(trainer_class, script_args, training_args, model_args, dataset_args)


def _train(trainer_class: type, script_args, training_args, model_args, dataset_args) -> None:
    trainer = build_trainer(trainer_class, script_args, training_args, model_args, dataset_args)
    shorten_lines(trainer)
    if script_args.overwrite_output_dir and trainer.accelerator.is_main_process:
        remove_checkpoints(training_args.output_dir)
    trainer.train(resume_from_checkpoint=wanted_checkpoint(training_args))
    if is_told_to_end(trainer):
        trainer.accelerator.print(f"Stopped by SIGTERM at step {trainer.state.global_step}, which is saved.")
        trainer.accelerator.end_training()
        sys.exit(TERMINATED)
    save_model(trainer, training_args.output_dir)
    trainer.create_model_card(dataset_name=script_args.dataset_name)
    trainer.accelerator.print(what_now(training_args.output_dir))
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.accelerator.end_training()


def what_now(folder: str) -> str:
    """What a training has written, and what to do with it: three lines."""
    what = "The LoRA adapter" if is_adapter(folder) else "The model"
    return (
        f"Training completed. {what} is in {folder}.\n"
        f"Its course, as a page:                opd-trl report {folder}\n"
        f"Before and after, at your questions:  opd-trl chat {folder}"
    )


def show_log() -> None:
    """Print what this package logs, such as how a teacher's server answered at start."""
    logger = logging.getLogger("opd_trl")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("opd_trl: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def run(parser, check: Callable[..., None], main: Callable[..., None]) -> None:
    """Parse the command line and call `main`; a fault of the arguments or of the data is one line, status 2.

    So is what the disk refuses. Ctrl-C is one line too, of the first process, that says how to go on; status 130.
    """
    spell_out_controls()  # in the tables of completions that TRL prints
    with guarded_screen():
        guarded_run(parser, check, main)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        leave()


def guarded_run(parser, check: Callable[..., None], main: Callable[..., None]) -> None:
    """What `run` does, behind the screen."""
    parsed = ()
    try:
        with one_interrupt():
            parsed = parser.parse_args_and_config()
            show_log()
            try:
                check(*parsed)
            except ValueError as error:
                parser.error(str(error))
            main(*parsed)
    except (DataError, RowError, TeacherError, TeacherServerError, CheckpointError, LockError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            how = how_to_go_on(parsed[1].output_dir) if parsed else "interrupted before it began."
            print(f"\n{parser.prog}: {how}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if (line := in_a_line(error)) is None:
            raise
        parser.error(f"{line} {way_on(parsed[1].output_dir) if parsed else ''}".rstrip())
