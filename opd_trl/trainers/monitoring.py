"""What a training run says of itself: its live monitor, its run log, and the card of its model."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from ..credentials import as_json, is_secret, without_secrets
from ..diagnostics import Monitor, MonitorWarning
from ..durable import atomically
from ..given import default_of
from ..manifest import newest_whole
from ..models.provenance import versions
from ..reports.model_card import model_card
from ..reports.run_log import RunLog
from ..teachers.base import path_of
from ..teachers.scores import Scores
from .config.loss_checks import has_biased_gradient
from .config.opd_config import OPDConfig
from .config.published_methods import find_method
from .figures import is_recorded, sample_lines
from .looks.watch import WatchHeldOut
from .phases import PhaseClock, RunSize


logger = get_logger(__name__)


def describe_session(trainer, *, first_step: int, max_steps: int) -> dict[str, Any]:
    """The entry of a session in `run.json`, without its start and its end."""
    args = trainer.args
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    return {
        "first_step": first_step,
        "max_steps": max_steps,
        "argv": without_secrets(sys.argv),
        "trainer": type(trainer).__name__,
        "method": args.method,
        "student": as_json(path_of(trainer, trainer.model)),
        "teachers": {name: as_json(teacher.source(trainer)) for name, teacher in trainer.teachers.items()},
        "config": as_json(fields),
        "differs": differences(args),
        "versions": versions(),
        "processes": trainer.accelerator.num_processes,
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else str(args.device),
    }


def differences(args: OPDConfig) -> dict[str, dict[str, Any]]:
    """Field -> value, default and its source, of the fields given by hand that are not as published or by default."""
    published = {} if args.method is None else find_method(args.method).fields
    found = {}
    for field in dataclasses.fields(args):
        if field.name not in args._given or is_secret(field.name):
            continue
        value = getattr(args, field.name)
        is_published = field.name in published
        default = published[field.name] if is_published else default_of(field)
        if value != default:
            found[field.name] = {
                "value": as_json(value),
                "default": None if default is dataclasses.MISSING else as_json(default),
                "source": f"method {args.method}" if is_published else type(args).__name__,
            }
    return found


def add_monitor(trainer, *, privileged: bool) -> "MonitorCallback | None":
    """Add what watches a run to a trainer's callbacks: its size; the monitor and SIGTERM where its arguments say.

    Args:
        trainer: of `opd_trl`.
        privileged: does the teacher read a privileged context?
    """
    trainer.add_callback(RunSize())
    if trainer.args.enable_jit_checkpoint:
        CheckpointAtSigterm(trainer)
    if not trainer.args.monitor:
        return None
    if trainer.args.monitor_eval_prompts:
        trainer.add_callback(WatchHeldOut(trainer))
    callback = MonitorCallback(trainer, rule_settings(trainer.args, privileged=privileged))
    trainer.add_callback(callback)
    return callback


def rule_settings(args: OPDConfig, *, privileged: bool) -> dict[str, object]:
    """What the rules must know of a run."""
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    return fields | {
        "privileged": privileged,
        "biased": has_biased_gradient(args),
        "sees_tail": args.loss_tail in ("bucket", "sample"),
    }


class MonitorCallback(TrainerCallback):
    """Feeds the rules with log lines, writes the run log, and stops where `monitor_stop` says so.

    The main process judges and writes; whether to stop is shared with the others, so that all stop at one step.

    Args:
        trainer: whose steps are watched.
        settings: see `opd_trl.diagnostics.Monitor`.
    """

    def __init__(self, trainer, settings: dict[str, object]):
        self.trainer = trainer
        self.settings = settings
        self.clock = PhaseClock(trainer.accelerator.device)
        self.is_stopping = False
        self._rules = Monitor(settings=settings)
        self._run_log: RunLog | None = None
        self._sampled_step = self._seen = 0  # how many micro-batches of that step have been seen
        self._timed_since = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._rules, self.is_stopping = Monitor(settings=self.settings), False
        for line in state.log_history:  # of the run that goes on: its first window, and what it was warned of
            self._rules.update(line["step"], line)
        self._sampled_step = self._timed_since = state.global_step
        self.clock.seconds()
        if state.is_world_process_zero:
            if state.global_step == 0 and (found := newest_whole(args.output_dir)):
                logger.warning(
                    f"{args.output_dir} holds {found.name} of an earlier run, and this one begins anew and writes "
                    "over its checkpoints. To go on instead: trainer.train(resume_from_checkpoint=True)."
                )
            session = describe_session(self.trainer, first_step=state.global_step, max_steps=state.max_steps)
            self._run_log = RunLog(args.output_dir, session)

    def take_sample(self, stats: dict[str, dict[str, Tensor]], inputs, scores: dict[str, Scores]) -> None:
        """Write down the first completions of one micro-batch of a step, where the step is one of those recorded.

        The longest completions are in the first micro-batch, so that each step takes the next one.
        """
        state, step = self.trainer.state, self.trainer.state.global_step + 1
        if self._run_log is None or not self.trainer.model.training:
            return
        if step != self._sampled_step:
            self._sampled_step, self._seen = step, 0
        self._seen += 1
        if is_recorded(step, state.max_steps) and self._seen == 1 + (step - 1) % self.trainer.num_forwards:
            for line in sample_lines(self.trainer, stats, inputs, scores):
                self._run_log.write("samples", step, line)

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_log:
            self._log_phases(state)

    def on_epoch_end(self, args, state, control, **kwargs):
        if control.should_log:
            self._log_phases(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        fired = []
        if self._run_log is not None:
            self._run_log.log(state.global_step, logs)
            fired = self._rules.update(state.global_step, logs)
            for warning in fired:
                self._warn(warning)
        if args.monitor_stop and "loss" in logs:
            self._stop(bool(fired), control)

    def on_train_end(self, args, state, control, **kwargs):
        if self._run_log is not None:
            by = "SIGTERM" if is_told_to_end(self.trainer) else "the monitor" if self.is_stopping else None
            self._run_log.end(f"stopped by {by}" if by else "finished")
            self._run_log = None

    def _warn(self, warning: MonitorWarning) -> None:
        logger.warning(warning.message)
        entry = dataclasses.asdict(warning)
        numbers = {name: x if math.isfinite(x := entry[name]) else None for name in ("value", "threshold")}
        self._run_log.write("warnings", warning.step, entry | numbers)

    def _stop(self, fired: bool, control) -> None:
        """Save and stop, on all processes, where the main one has seen a rule fire."""
        accelerator = self.trainer.accelerator
        flag = torch.tensor(float(fired), device=accelerator.device)
        if accelerator.reduce(flag, reduction="sum").item() > 0:
            self.is_stopping = control.should_save = control.should_training_stop = True

    def _log_phases(self, state) -> None:
        """Seconds of each phase in an optimizer step, the mean since they were logged last."""
        steps, self._timed_since = state.global_step - self._timed_since, state.global_step
        if steps:
            for phase, seconds in self.clock.seconds().items():
                self.trainer.train_metrics[f"time/{phase}"].append(seconds / steps)


class CheckpointAtSigterm(JITCheckpointCallback):
    """Save a checkpoint and stop at the end of the step in which SIGTERM comes (`enable_jit_checkpoint`).

    transformers' own saves wherever a process sees the signal: in the middle of a step, whose gradients no checkpoint
    holds, and each process for itself, so that several wait for each other for ever. Its handler is used as it is.

    Args:
        trainer: to whose callbacks this one is added, in the place of transformers' own.
    """

    def __init__(self, trainer):
        super().__init__()
        self.trainer = trainer
        self.jit_manager = trainer.pop_callback(JITCheckpointCallback).jit_manager
        self.jit_manager.kill_wait = 0
        self.is_stopping = False
        trainer.add_callback(self)

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_stopping = False

    def on_step_begin(self, args, state, control, **kwargs):
        pass

    on_pre_optimizer_step = on_epoch_end = on_step_begin

    def on_step_end(self, args, state, control, **kwargs):
        accelerator = self.trainer.accelerator
        asked = torch.tensor(float(self.jit_manager.is_checkpoint_requested), device=accelerator.device)
        if accelerator.reduce(asked, reduction="sum").item() > 0:  # all stop at one step
            self.is_stopping = control.should_save = control.should_training_stop = True


def is_told_to_end(trainer) -> bool:
    """Has SIGTERM stopped the training?"""
    return any(isinstance(x, CheckpointAtSigterm) and x.is_stopping for x in trainer.callback_handler.callbacks)


def write_card(
    trainer,
    folder: Path,
    *,
    place: str,
    name: str | None,
    data: str | None,
    tags: Sequence[str],
    paper: dict[str, str],
) -> None:
    """Write `README.md` into a folder of weights, on the process that saves; arguments of `reports.model_card`.

    A model that goes to the hub has its name there as `name` and `place`.
    """
    if not trainer.args.should_save:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    text = model_card(
        describe_session(trainer, first_step=0, max_steps=trainer.state.max_steps),
        name=name or Path(place).name,
        place=trainer.hub_model_id or place,
        trained=what_is_trained(model),
        is_adapter=isinstance(model, PeftModel),
        step=trainer.state.global_step,
        log=trainer.state.log_history,
        tags=tags,
        paper=paper,
        data=data,
    )
    with atomically(folder / "README.md") as file:
        file.write(text)


def what_is_trained(model) -> str:
    """Which weights were trained, in words."""
    if not isinstance(model, PeftModel):
        return "all"
    config = model.peft_config[model.active_adapters[0]]
    kind, rank = config.peft_type.value, getattr(config, "r", None)
    return f"{kind} adapter" + (f" of rank {rank}" if rank else "")
