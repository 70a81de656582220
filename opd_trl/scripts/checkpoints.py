"""Which checkpoint a run goes on from."""

from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


#: What transformers writes last into a checkpoint.
TRAINER_STATE = "trainer_state.json"


def checkpoint_of(training_args) -> str | None:
    """The folder that `resume_from_checkpoint` means: a path, or for `true` the last whole one in `output_dir`.

    A run that is killed while it saves leaves a folder without the trainer's state, which is written last.

    Raises:
        ValueError: there is none, or the one that is named is not whole.
    """
    given = str(training_args.resume_from_checkpoint or "false")
    if given.lower() == "false":
        return None
    if given.lower() != "true":
        if not is_whole(Path(given)):
            state = "is not whole (killed while it was saved?)" if Path(given).is_dir() else "does not exist"
            raise ValueError(
                f"resume_from_checkpoint={given!r} {state}: no {TRAINER_STATE} in it. Give another folder "
                f"{PREFIX_CHECKPOINT_DIR}-N, or true for the last whole one in output_dir."
            )
        return given
    folders = sorted(Path(training_args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=step_of, reverse=True)
    if whole := next(filter(is_whole, folders), None):
        return str(whole)
    raise ValueError(
        f"resume_from_checkpoint is true, and {training_args.output_dir} has no whole checkpoint. Leave it out to "
        "start anew."
    )


def is_whole(folder: Path) -> bool:
    """Was a checkpoint saved to its end?"""
    return (folder / TRAINER_STATE).is_file()


def step_of(folder: Path) -> int:
    """The N of `checkpoint-N`; -1 for any other name."""
    number = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isdecimal() else -1
