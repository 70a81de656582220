"""Which checkpoint a run goes on from, and what is there already."""

import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..trainers.resume import TRAINER_STATE, is_whole, whole_checkpoints


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
    if whole := whole_checkpoints(training_args.output_dir):
        return str(whole[0])
    raise ValueError(
        f"resume_from_checkpoint is true, and {training_args.output_dir} has no whole checkpoint. Leave it out to "
        "start anew."
    )


def check_output(training_args, *, overwrite: bool) -> None:
    """Refuse to begin anew, unasked, in a folder that holds the checkpoints of an earlier run.

    Raises:
        ValueError: it does; or both going on and beginning anew are asked for; or see `checkpoint_of`.
    """
    found = whole_checkpoints(training_args.output_dir)
    if checkpoint_of(training_args) is not None:
        if overwrite:
            raise ValueError(
                "resume_from_checkpoint goes on from a checkpoint, and overwrite_output_dir removes it. Give one of "
                "the two."
            )
    elif found and training_args.resume_from_checkpoint is None and not overwrite:
        raise ValueError(
            f"output_dir={training_args.output_dir!r} holds {found[0].name} of an earlier run. Go on from it with "
            "--resume_from_checkpoint true, give another --output_dir, or begin anew and remove its checkpoints with "
            "--overwrite_output_dir."
        )


def remove_checkpoints(output_dir: str) -> None:
    """Remove the checkpoints of an earlier run, so that nothing goes on from them by mistake."""
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(folder)


def how_to_go_on(output_dir: str) -> str:
    """What to do after a run was interrupted."""
    if found := whole_checkpoints(output_dir):
        return f"interrupted. To go on from {found[0]}: the same command with --resume_from_checkpoint true."
    return "interrupted before the first checkpoint was saved. The same command begins anew."
