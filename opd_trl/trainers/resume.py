"""What a checkpoint needs beyond TRL's: it is whole or not there, and a resumed run equals an unbroken one."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel
from torch.utils.data import Sampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..durable import in_a_line, naming, settle, take_place, take_places
from ..locks import writing
from ..manifest import MANIFEST, TRAINER_STATE, checkpoints, fault_of, is_sealed, newest_whole, seal, step_of
from .monitoring import write_card


logger = get_logger(__name__)

#: Where a checkpoint is written until it is whole, below the run's folder.
APART = ".saving"
# What resuming needs, and the files that hold it under one engine or another.
NEEDED = {
    "the weights": ("*model*.safetensors", "*model*.bin", "pytorch_model_fsdp*", "global_step*"),
    "the optimizer's state (optimizer.pt)": ("optimizer*", "global_step*"),
    "the place in the learning rate's schedule (scheduler.pt)": ("scheduler.pt", "global_step*"),
    "the random state (rng_state.pth)": ("rng_state*",),
}
#: Folder of a moving teacher inside a checkpoint; PEFT saves a teacher adapter under the same name.
TEACHER_FOLDER = "teacher"


class EpochSampler(Sampler[int]):
    """TRL's sampler of prompts, whose order depends on the seed and the epoch alone.

    TRL's own shuffles with a generator that every epoch moves on and that a resumed run starts anew, so that it would
    see the rows of the first epoch again.

    Args:
        sampler: TRL's `RepeatSampler`.
        trainer: its `state.epoch` says which epoch begins.
    """

    def __init__(self, sampler: Sampler[int], trainer):
        self.sampler = sampler
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed)
            # The epoch of a finished pass is a whole number up to rounding.
            for _ in range(int((self.trainer.state.epoch or 0) + 1e-6)):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def save_generation_buffer(trainer, folder: str) -> None:
    """Save this rank's completions that later steps still learn from; nothing where the next step samples its own."""
    if trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations):
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save({"step": trainer._step, "batches": trainer._buffered_inputs}, buffer_file(trainer, folder))


def load_generation_buffer(trainer, folder: str) -> None:
    """Take up the completions that `save_generation_buffer` left."""
    path = buffer_file(trainer, folder)
    if path.is_file():
        saved = torch.load(path, map_location=trainer.accelerator.device, weights_only=True)
        trainer._step, trainer._buffered_inputs = saved["step"], saved["batches"]


def buffer_file(trainer, folder: str) -> Path:
    return Path(folder) / f"generation_buffer_{trainer.accelerator.process_index}.pt"


def only_training(args) -> AbstractContextManager:
    """Be the only training that writes to `output_dir`, on the process that writes there; LockError if not."""
    return writing(args.output_dir, option="output_dir") if args.should_save else nullcontext()


class CheckpointError(ValueError):
    """A checkpoint from which a run cannot go on as if it had not stopped."""


def lacks(trainer, checkpoint: Path) -> str | None:
    """What a checkpoint lacks that transformers would pass over in silence, in words; None where it has all."""
    needed = dict(NEEDED)
    if getattr(trainer.args, "teacher_model_kind", None) == "ema":
        needed |= {f"the moving teacher ({TEACHER_FOLDER}/)": (TEACHER_FOLDER,)}
    missing = [what for what, files in needed.items() if not any(any(checkpoint.glob(name)) for name in files)]
    if not missing:
        return None
    return f"it lacks {', '.join(missing)}, as one that was saved with save_only_model or copied in part"


def checkpoint_to_load(trainer, given: str | bool | None) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means, whole on every machine; all ranks must call it.

    Raises:
        CheckpointError: the one that is named is not whole, or none is.
    """
    if not given:
        return None
    folders = [checkpoints(trainer.args.output_dir) if given is True else [Path(given)]]
    looks, passed_over = trainer.accelerator.is_local_main_process, {}
    for folder in broadcast_object_list(folders)[0]:  # the disks of other machines may hold others
        faults = gather_object([(fault_of(folder) or lacks(trainer, folder)) if looks else None])
        fault = next(filter(None, faults), None)
        if fault is None:
            if not is_sealed(folder):
                logger.warning(
                    f"{folder} has no {MANIFEST}, as those of TRL and of earlier versions. Each file was looked at by "
                    "itself: none is empty, cut or zeros."
                )
            trainer.accelerator.print(f"Going on from {folder}.")
            return str(folder)
        if given is not True:
            raise CheckpointError(not_whole(given, fault))
        logger.warning(f"{folder} is passed over: {fault}.")
        passed_over[folder.name] = fault
    raise CheckpointError(none_whole(trainer.args.output_dir, passed_over))


def not_whole(given: str, fault: str) -> str:
    """What to do where the checkpoint that is named is not whole."""
    return (
        f"no run can go on from {given}: {fault}. Give another folder {PREFIX_CHECKPOINT_DIR}-N as "
        "resume_from_checkpoint, true for the newest whole one in output_dir, or begin a new run with another "
        "output_dir."
    )


def none_whole(output_dir: str, faults: dict[str, str]) -> str:
    """What to do where no checkpoint is whole."""
    found = "".join(f" {name}: {fault}." for name, fault in faults.items())
    return (
        f"resume_from_checkpoint is true, and {output_dir} has no whole checkpoint.{found} Leave it out to start anew."
    )


class Checkpoints:
    """The part of a trainer that saves checkpoints and goes on from them; stands before TRL's trainer.

    A checkpoint is written to `.saving/`, waited for until it is on the disk, listed with sizes and hashes in
    `manifest.json`, and renamed. Older ones are removed after that.
    """

    _writes_apart = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        with only_training(self.args):
            checkpoint = checkpoint_to_load(self, resume_from_checkpoint)
            if self.accelerator.is_local_main_process:  # what a kill has left
                shutil.rmtree(Path(self.args.output_dir, APART), ignore_errors=True)
            return super().train(checkpoint, *args, **kwargs)

    def _get_train_sampler(self, dataset=None):
        return EpochSampler(super()._get_train_sampler(dataset), self)

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return str(Path(folder, APART)) if self._writes_apart else folder

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        self._write_card(Path(output_dir or self.args.output_dir))

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write `README.md` into `output_dir`: what was trained, how, and how to use it; see `reports.model_card`."""
        self._write_card(Path(self.args.output_dir), name=model_name, data=dataset_name, tags=tags)

    def _write_card(self, folder, *, name=None, data=None, tags=None):
        tags = [*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])]
        place = Path(*(part for part in folder.parts if part != APART))
        write_card(self, folder, place=str(place), name=name, data=data, tags=tags, paper=self._paper)

    def _save_checkpoint(self, model, trial):
        home = Path(self._get_output_dir(trial))
        part = home / APART / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        is_first = self.accelerator.is_local_main_process
        try:
            if is_first:
                shutil.rmtree(part.parent, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            with naming(home / part.name):
                self._writes_apart = True
                super()._save_checkpoint(model, trial)
                self._writes_apart = False
                self.accelerator.wait_for_everyone()
                place_checkpoint(self, part, home / part.name)
        except Exception as error:
            if is_first:
                shutil.rmtree(part.parent, ignore_errors=True)
            if (reason := in_a_line(error)) is None:
                raise
            left = way_on(str(home)) or "No checkpoint was saved before it."
            raise CheckpointError(f"{part.name} could not be saved: {reason} {left}") from error
        finally:
            self._writes_apart = False
        if self.args.should_save:
            remove_old(self, home)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(home / part.name))

    def _push_from_checkpoint(self, checkpoint_folder):
        if not self._writes_apart:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        save_generation_buffer(self, output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_default_adapter(self, resume_from_checkpoint)

    def _load_best_model(self):
        if fault := fault_of(Path(self.state.best_model_checkpoint)):
            raise CheckpointError(
                f"the best model cannot be loaded, {self.state.best_model_checkpoint} is not whole: {fault}. The last "
                "checkpoint holds the model as it is now; load_best_model_at_end=False saves that one."
            )
        super()._load_best_model()

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            load_generation_buffer(self, checkpoint)


def place_checkpoint(trainer, part: Path, folder: Path) -> None:
    """Give a checkpoint its name, once it is on the disk and says what it holds. All ranks must call it."""
    state, accelerator = trainer.state, trainer.accelerator
    if state.best_model_checkpoint == str(part):
        state.best_model_checkpoint = str(folder)
        if trainer.args.should_save:
            state.save_to_json(str(part / TRAINER_STATE))
    if accelerator.is_local_main_process and part.is_dir():
        settle(part)  # what the ranks of this machine have written
    accelerator.wait_for_everyone()
    if trainer.args.should_save:
        seal(part)
        take_place(part, folder)
    accelerator.wait_for_everyone()
    if accelerator.is_local_main_process and part.is_dir():
        take_place(part, folder)  # the files of the ranks of a machine with a disk of its own
    accelerator.wait_for_everyone()


def remove_old(trainer, home: Path) -> None:
    """Keep `save_total_limit` checkpoints: the one just saved, the best one, and the newest of the others.

    Those of later steps are left of an earlier run, or were passed over: they go first.
    """
    step, limit = trainer.state.global_step, trainer.args.save_total_limit
    kept = {f"{PREFIX_CHECKPOINT_DIR}-{step}", Path(trainer.state.best_model_checkpoint or "").name}
    found = sorted(checkpoints(str(home)), key=lambda folder: (step_of(folder) <= step, step_of(folder)))
    others = [folder for folder in found if folder.name not in kept]
    if limit and limit > 0:
        for folder in others[: max(0, len(found) - max(limit, len(found) - len(others)))]:
            shutil.rmtree(folder, ignore_errors=True)


def way_on(output_dir: str) -> str:
    """How a run that has ended goes on; empty where it cannot."""
    whole = newest_whole(output_dir)
    return f"To go on from {whole}: the same command with --resume_from_checkpoint true." if whole else ""


def save_model(trainer, folder: str) -> None:
    """Save the trained model; what lies in its place is kept until all is written. All ranks must call it."""
    part = Path(folder, APART, "model")
    with naming(Path(folder)):
        try:
            trainer.save_model(str(part))
            trainer.accelerator.wait_for_everyone()
            if trainer.args.should_save:
                take_places(part, Path(folder))
        finally:
            if trainer.args.should_save:
                shutil.rmtree(part.parent, ignore_errors=True)


def load_default_adapter(trainer, checkpoint: str) -> None:
    """Load the adapter that lies beside the folders of others in a checkpoint: a teacher's, or TRL's "ref".

    transformers before 5.23 reads the folders alone, so that a resumed student would start from its first weights.
    """
    folder, model = Path(checkpoint), trainer.model
    if not isinstance(model, PeftModel) or trainer.is_fsdp_enabled:  # a sharded model is read from its own files
        return
    if (folder / "adapter_config.json").is_file() and any(folder.glob("*/adapter_config.json")):
        model.load_adapter(checkpoint, "default", is_trainable="default" in model.active_adapters)
