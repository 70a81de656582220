"""Training stages go on from their last whole checkpoint, and only from one of the same work."""

from pathlib import Path

import pytest

from opd_trl.cli.pipelines.document import read_pipeline
from opd_trl.cli.pipelines.record import sha256
from opd_trl.cli.pipelines.runner import Run


@pytest.fixture
def interrupted(here):
    """A run whose SFT was killed behind two whole checkpoints and within a third."""
    Path("p.yaml").write_text("output_dir: run\nstages: {sft: {run: trl sft, args: {max_steps: 9}}}\n")
    for step, state in ((5, True), (10, True), (15, False)):
        folder = Path(f"run/sft/checkpoint-{step}")
        folder.mkdir(parents=True)
        if state:
            (folder / "trainer_state.json").write_text("{}")
    args = {"output_dir": "run/sft", "max_steps": 9}
    entry = {
        "run": "trl sft",
        "arguments": args,
        "arguments_sha256": sha256(args),
        "config_sha256": sha256({}),
        "inputs": {},
        "outputs": {},
        "output_paths": ["run/sft"],
        "status": "killed",
        "exit_status": 137,
    }

    def build(*settings: str, **changes) -> tuple[Run, object]:
        pipeline = read_pipeline("p.yaml", list(settings))
        run = Run(pipeline, {"sft": []}, {"sft": {**entry, **changes}}, say=lambda text: None)
        return run, pipeline.stages[0]

    return build


def test_the_last_whole_checkpoint_is_gone_on_from(interrupted):
    run, stage = interrupted()
    assert run.go_on(stage) == (["--resume_from_checkpoint", "run/sft/checkpoint-10"], "run/sft/checkpoint-10")
    assert Path("run/sft").exists()


def test_without_a_whole_checkpoint_training_starts_anew_in_place(interrupted):
    run, stage = interrupted()
    for state in Path("run/sft").glob("*/trainer_state.json"):
        state.unlink()
    assert run.go_on(stage) == ([], None)


def test_a_checkpoint_of_other_settings_is_moved_aside(interrupted):
    run, stage = interrupted("sft.max_steps=20")
    assert run.go_on(stage) == ([], None)
    assert not Path("run/sft").exists()
    assert len(list(Path("run").glob("sft.before-*/checkpoint-10"))) == 1


def test_a_finished_stage_that_is_asked_for_again_starts_anew(interrupted):
    run, stage = interrupted(status="done")
    assert run.go_on(stage) == ([], None)
    assert not Path("run/sft").exists()


def test_a_checkpoint_that_the_file_names_is_left_alone(interrupted):
    Path("p.yaml").write_text(
        "output_dir: run\nstages: {sft: {run: trl sft, args: {max_steps: 9, resume_from_checkpoint: x}}}\n"
    )
    args = {"output_dir": "run/sft", "max_steps": 9, "resume_from_checkpoint": "x"}
    run, stage = interrupted(arguments=args, arguments_sha256=sha256(args))
    assert run.go_on(stage)[0] == []


def test_checkpoints_are_no_part_of_the_output(interrupted):
    run, stage = interrupted()
    Path("run/sft/model.safetensors").write_text("w")
    before = run.digests(stage.outputs)
    assert list(before["run/sft"]["files"]) == ["model.safetensors"]
