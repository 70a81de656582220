"""Which checkpoint a run goes on from, and what is there already."""

import shutil
from pathlib import Path

from ..manifest import checkpoints, fault_of, newest_whole
from ..trainers.resume import APART, none_whole, not_whole, way_on


def checkpoint_of(training_args) -> str | None:
    """The folder that `resume_from_checkpoint` means: a path, or for `true` the newest whole one in `output_dir`.

    Raises:
        ValueError: there is none, or the one that is named is not whole.
    """
    given = wanted_checkpoint(training_args)
    if not given:
        return None
    if given is not True:
        if fault := fault_of(Path(given)) if Path(given).is_dir() else "there is no such folder":
            raise ValueError(not_whole(given, fault))
        return given
    whole = newest_whole(training_args.output_dir)
    if whole is None:
        found = {folder.name: fault_of(folder) for folder in checkpoints(training_args.output_dir)}
        raise ValueError(none_whole(training_args.output_dir, found))
    return str(whole)


def wanted_checkpoint(training_args) -> str | bool:
    """What `resume_from_checkpoint` says: true, false, or a folder."""
    given = str(training_args.resume_from_checkpoint or "false")
    return {"true": True, "false": False}.get(given.lower(), given)


def check_output(training_args, *, overwrite: bool) -> None:
    """Refuse to begin anew, unasked, in a folder that holds the checkpoints of an earlier run.

    Raises:
        ValueError: it does; or both going on and beginning anew are asked for; or see `checkpoint_of`.
    """
    found = newest_whole(training_args.output_dir)
    if checkpoint_of(training_args) is not None:
        if overwrite:
            raise ValueError(
                "resume_from_checkpoint goes on from a checkpoint, and overwrite_output_dir removes it. Give one of "
                "the two."
            )
    elif found and training_args.resume_from_checkpoint is None and not overwrite:
        raise ValueError(
            f"output_dir={training_args.output_dir!r} holds {found.name} of an earlier run. Go on from it with "
            "--resume_from_checkpoint true, give another --output_dir, or begin anew and remove its checkpoints with "
            "--overwrite_output_dir."
        )


def remove_checkpoints(output_dir: str) -> None:
    """Remove the checkpoints of an earlier run, so that nothing goes on from them by mistake."""
    for folder in filter(Path.exists, (*checkpoints(output_dir), Path(output_dir, APART))):
        shutil.rmtree(folder)


def how_to_go_on(output_dir: str) -> str:
    """What to do after a run was interrupted."""
    if how := way_on(output_dir):
        return f"interrupted. {how}"
    return "interrupted before the first checkpoint was saved. The same command begins anew."
