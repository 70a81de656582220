"""One process of a job: train for a few steps on fixed completions and write down what came out.

Rank 0 writes `log.json` (loss and gradient norm of each step) and `model.pt` (the trained parameters, gathered); every
rank writes its last step to `last_step_RANK.txt`. A rank that is not done after `time_limit` seconds prints where it
stands and ends with status 1.
"""

import faulthandler
import json
import math
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

from opd_trl import OPDConfig, OPDTrainer, OPSDConfig, OPSDTrainer
from tests import tiny
from tests.trainers.build import lora_config


ROWS_PER_STEP = 8


def completion(prompt: str, lengths: list[int]) -> list[int]:
    """The fixed completion of a prompt, ended by EOS: which ids and how many depends on the row's number alone."""
    row = int(prompt.split("plus ")[1].split("?")[0])
    generator = torch.Generator().manual_seed(row)
    ids = torch.randint(3, 103, (lengths[row % len(lengths)] - 1,), generator=generator)
    return [*ids.tolist(), 2]


def make_trainer(setting: dict):
    """OPDTrainer for `kind` "opd", else OPSDTrainer with that `teacher_model_kind`."""

    def fixed_completions(prompts, trainer):
        ids = trainer.processing_class.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True)
        ids = ids["input_ids"] if not isinstance(ids, list) else ids
        completions = [completion(prompt[-1]["content"], setting["lengths"]) for prompt in prompts]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}

    options = {
        "output_dir": setting["out"],
        "use_cpu": True,
        "bf16": False,
        "max_steps": 3,
        "per_device_train_batch_size": setting["per_device"],
        "gradient_accumulation_steps": setting["accumulate"],
        "max_completion_length": 16,
        "shuffle_dataset": False,
        "loss_top_k": 5,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "adam_epsilon": 1e-4,  # a gradient of rounding noise must not become a step of full length
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    } | setting.get("options", {})
    num_rows = 3 * ROWS_PER_STEP
    context = {} if setting["kind"] == "opd" else {"privileged_context": "Answer with b."}
    context |= {"completion": [f"so {'c' * (i % 5)}{i}" for i in range(num_rows)]}  # read where `lmbda` is below 1
    if "teachers" in setting:
        options["teachers"] = setting["teachers"]
        # Of eight rows the first teacher has three: some micro-batches and ranks have none of them.
        names = list(setting["teachers"])
        context["teacher"] = [names[0] if row % ROWS_PER_STEP < 3 else names[1] for row in range(num_rows)]
    arguments = {
        "model": setting["student"],
        "train_dataset": tiny.questions(num_rows, **context),
        "peft_config": lora_config() if setting["lora"] else None,
        "rollout_func": None if setting["lengths"] is None else fixed_completions,
    }
    if setting["kind"] == "opd":
        trainer_class, args = OPDTrainer, OPDConfig(**options, teacher_model_name_or_path=setting.get("teacher"))
    else:
        trainer_class, args = OPSDTrainer, OPSDConfig(**options, teacher_model_kind=setting["kind"])
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate switches FSDP on for accelerators alone; to PyTorch, gloo on a CPU is all the same.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    torch.manual_seed(0)  # the initial adapter
    return trainer_class(args=args, **arguments)


def check_units(trainer) -> None:
    """A teacher's own model is gathered layer by layer, never whole."""
    for teacher in trainer.teachers.values():
        if teacher.model is not None:
            assert all(isinstance(layer, FSDPModule) for layer in teacher.model.model.layers)


def engine_of(trainer) -> str:
    """The engine that a trainer runs under, by the name that the tests give it."""
    if trainer.is_deepspeed_enabled:
        return f"ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    if trainer.is_fsdp_enabled:
        return "FSDP2"
    return "DDP" if trainer.accelerator.num_processes == 2 else "1 process"


class KillAfter(TrainerCallback):
    """SIGKILL to every rank in the middle of the step after `step`: no handler, no clean-up."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class SpoilLine(TrainerCallback):
    """NaN for the loss in the log line of `step`, on rank 0 alone: no other rank has anything to judge by."""

    def __init__(self, step: int):
        self.step = step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs and state.is_world_process_zero and state.global_step == self.step:
            logs["loss"] = math.nan


class SigtermIn(TrainerCallback):
    """SIGTERM to rank 1 alone in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1 and not state.is_world_process_zero:
            os.kill(os.getpid(), signal.SIGTERM)


def main_into_file(setting: dict, environment: dict[str, str], output: Path) -> None:
    """`main` of a forked process: with the environment of a launcher, its output into a file."""
    os.environ |= environment
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main(setting)


def main(setting: dict) -> None:
    faulthandler.dump_traceback_later(setting["time_limit"], exit=True)
    torch.set_num_threads(1)
    trainer = make_trainer(setting)
    assert engine_of(trainer) == setting["engine"]
    if trainer.is_fsdp_enabled:
        check_units(trainer)
    if "kill_after" in setting:
        trainer.add_callback(KillAfter(setting["kill_after"]))
    if "sigterm_in" in setting:
        trainer.add_callback(SigtermIn(setting["sigterm_in"]))
    if "spoil_line" in setting:
        trainer.callback_handler.callbacks.insert(0, SpoilLine(setting["spoil_line"]))  # before the monitor reads it
    trainer.train(resume_from_checkpoint=setting.get("resume", False))
    out = Path(setting["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / f"last_step_{trainer.accelerator.process_index}.txt").write_text(str(trainer.state.global_step))
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:
        keys = ("loss", "grad_norm", "distillation/per_token_divergence", "entropy")
        keys += ("distillation/given/per_token_divergence", "completions/partial/max_length")
        lines = (row for row in trainer.state.log_history if "loss" in row)
        rows = [{key: row[key] for key in keys if key in row} for row in lines]
        (out / "log.json").write_text(json.dumps(rows))
        trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
        torch.save({name: x.float().clone() for name, x in state.items() if name in trained}, out / "model.pt")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    # Everything is written. Now and then a communication thread aborts while the interpreter shuts down.
    sys.stdout.flush()
    os._exit(0)
