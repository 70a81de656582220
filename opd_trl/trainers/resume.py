"""What a checkpoint needs beyond TRL's, so that a resumed run equals an unbroken one."""

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from torch.utils.data import Sampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


#: What transformers writes last into a checkpoint.
TRAINER_STATE = "trainer_state.json"
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


class CheckpointError(ValueError):
    """A checkpoint from which a run cannot go on as if it had not stopped."""


def check_checkpoint(trainer, checkpoint: str) -> None:
    """Raise CheckpointError where a checkpoint lacks what transformers would pass over in silence."""
    needed = dict(NEEDED)
    if getattr(trainer.args, "teacher_model_kind", None) == "ema":
        needed |= {f"the moving teacher ({TEACHER_FOLDER}/)": (TEACHER_FOLDER,)}
    missing = [what for what, files in needed.items() if not any(any(Path(checkpoint).glob(name)) for name in files)]
    if missing:
        raise CheckpointError(
            f"no run can go on from {checkpoint}: it lacks {', '.join(missing)}. A checkpoint that was saved with "
            "save_only_model, or copied in part, is like that. Take another one, or begin a new run with another "
            "output_dir."
        )


def whole_checkpoints(output_dir: str) -> list[Path]:
    """The checkpoints in a folder that were saved to their end, the last one first."""
    return sorted(filter(is_whole, Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")), key=step_of, reverse=True)


def is_whole(folder: Path) -> bool:
    """Was a checkpoint saved to its end?"""
    return (folder / TRAINER_STATE).is_file()


def step_of(folder: Path) -> int:
    """The N of `checkpoint-N`; -1 for any other name."""
    number = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isdecimal() else -1


def load_default_adapter(trainer, checkpoint: str) -> None:
    """Load the adapter that lies beside the folders of others in a checkpoint: a teacher's, or TRL's "ref".

    transformers before 5.23 reads the folders alone, so that a resumed student would start from its first weights.
    """
    folder, model = Path(checkpoint), trainer.model
    if not isinstance(model, PeftModel) or trainer.is_fsdp_enabled:  # a sharded model is read from its own files
        return
    if (folder / "adapter_config.json").is_file() and any(folder.glob("*/adapter_config.json")):
        model.load_adapter(checkpoint, "default", is_trainable="default" in model.active_adapters)
