"""A power cut, a kill or a full disk while a checkpoint is saved: the newest whole one is gone on from."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.trainer_callback import TrainerControl

from opd_trl.manifest import BLOCK, BLOCKS, MANIFEST, damage, fault_of, newest_whole, seal
from opd_trl.trainers.resume import APART, CheckpointError, checkpoint_to_load, remove_old
from tests.trainers.build import opd_trainer, opsd_trainer


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def missing(path: Path) -> None:
    path.unlink()


#: A file of every kind that a checkpoint holds.
FILES = (
    "trainer_state.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "teacher/adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "generation_buffer_0.pt",
    "tokenizer.json",
    "training_args.bin",
    "chat_template.jinja",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, student_path) -> Path:
    """The folder of a run whose checkpoint holds an adapter, that of a moving teacher, and buffered completions."""
    folder = tmp_path_factory.mktemp("run")
    options = {"save_strategy": "steps", "save_steps": 1, "steps_per_generation": 2, "max_steps": 1}
    opsd_trainer(folder, student_path, teacher_model_kind="ema", **options).train()
    return folder / "out"


@pytest.fixture
def checkpoint(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved / "checkpoint-1", tmp_path / "out" / "checkpoint-1"))


def test_a_checkpoint_lists_all_that_it_holds_and_nothing_is_left_beside_it(saved):
    files = json.loads((saved / "checkpoint-1" / MANIFEST).read_text())["files"]
    found = {str(p.relative_to(saved / "checkpoint-1")) for p in (saved / "checkpoint-1").rglob("*") if p.is_file()}
    assert set(files) == found - {MANIFEST}
    assert set(FILES) <= set(files)
    assert not (saved / APART).exists()
    assert fault_of(saved / "checkpoint-1") is None


@pytest.mark.attack(
    "disk",
    "any file of a checkpoint is half, empty, zeros, missing, or has one other bit",
    "the checkpoint is not taken for whole; the file is named",
)
@pytest.mark.parametrize("name", FILES)
def test_a_spoilt_file_of_a_checkpoint_is_seen(checkpoint, name):
    whole = (checkpoint / name).read_bytes()
    for spoil in (half, empty, zeros, one_bit, missing):
        spoil(checkpoint / name)
        assert (fault_of(checkpoint) or "").startswith(name), spoil.__name__
        (checkpoint / name).write_bytes(whole)
    assert fault_of(checkpoint) is None


@pytest.mark.attack(
    "disk",
    "the same in a checkpoint without a manifest, of TRL or of an earlier version",
    "half, empty or zeros is seen in every file whose form says how long it is",
)
@pytest.mark.parametrize("name", [name for name in FILES if name != "chat_template.jinja"])
def test_a_spoilt_file_is_seen_without_a_manifest(checkpoint, name):
    (checkpoint / MANIFEST).unlink()
    assert fault_of(checkpoint) is None
    whole = (checkpoint / name).read_bytes()
    for spoil in (half, empty, zeros):
        spoil(checkpoint / name)
        assert (fault_of(checkpoint) or "").startswith(name), spoil.__name__
        (checkpoint / name).write_bytes(whole)


def test_a_manifest_that_is_spoilt_and_an_index_whose_shard_is_missing_are_seen(checkpoint):
    listed = (checkpoint / MANIFEST).read_text()
    for text in ("", "\0" * 20, listed[:-30], "[]", '{"files": {"adapter_config.json": 1}}', '{"files": []}'):
        (checkpoint / MANIFEST).write_text(text)
        assert fault_of(checkpoint) == f"{MANIFEST} is spoilt", text
    (checkpoint / MANIFEST).unlink()
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
    assert fault_of(checkpoint) == f"{index.name} names model-00002-of-00002.safetensors, which is missing"
    index.unlink()
    (checkpoint / "checkpoint-is-incomplete.txt").write_text("saving at SIGTERM")
    assert fault_of(checkpoint) == "it was not saved to its end"


def test_a_large_file_is_hashed_in_samples_that_see_its_ends_and_every_long_hole(tmp_path):
    size = 3 * BLOCK * BLOCKS
    content = os.urandom(BLOCK) * (size // BLOCK)
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    seal(tmp_path)
    assert damage(tmp_path) is None
    hole = 3 * BLOCK
    for start in (0, size - hole, size // 2, size // 3 + 17):
        with file.open("r+b") as opened:
            opened.seek(start)
            opened.write(bytes(hole))
        assert damage(tmp_path) == "model.safetensors is not what was saved"
        file.write_bytes(content)


@pytest.mark.attack(
    "disk",
    "the newest two of three checkpoints are spoilt, and the run is resumed with save_total_limit 1",
    "it goes on from the oldest, says why it passed over the others, and keeps the one that it saves",
)
def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_says_which_it_passed_over(
    tmp_path, student_path, teacher_path, caplog, capsys
):
    options = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    opd_trainer(tmp_path, student_path, teacher_path, max_steps=3, **options).train()
    out = tmp_path / "out"
    half(out / "checkpoint-3" / "trainer_state.json")
    zeros(out / "checkpoint-2" / "optimizer.pt")
    assert newest_whole(str(out)) == out / "checkpoint-1"

    trainer = opd_trainer(tmp_path, student_path, teacher_path, max_steps=2, save_total_limit=1, **options)
    with pytest.raises(CheckpointError, match=r"no run can go on from .*checkpoint-3: trainer_state.json has"):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-3"))
    trainer.train(resume_from_checkpoint=True)
    assert f"{out}/checkpoint-3 is passed over: trainer_state.json has " in caplog.text
    assert f"{out}/checkpoint-2 is passed over: optimizer.pt is not what was saved." in caplog.text
    assert f"Going on from {out}/checkpoint-1." in capsys.readouterr().out
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert fault_of(out / "checkpoint-2") is None

    (out / "checkpoint-2" / MANIFEST).unlink()
    assert checkpoint_to_load(trainer, True) == str(out / "checkpoint-2")
    assert f"{out}/checkpoint-2 has no {MANIFEST}, as those of TRL and of earlier versions" in caplog.text
    empty(out / "checkpoint-2" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint. checkpoint-2: model.safetensors is empty"):
        checkpoint_to_load(trainer, True)


def test_the_best_checkpoint_is_named_as_it_lies_and_a_spoilt_one_is_one_line(tmp_path, student_path, teacher_path):
    options = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2, "save_total_limit": 1}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, metric_for_best_model="loss", **options)
    trainer.control, trainer.state.global_step = TrainerControl(), 0
    trainer.train()
    trainer.state.best_global_step = trainer.state.global_step
    trainer._save_checkpoint(trainer.model, trial=None)
    best = tmp_path / "out" / "checkpoint-1"
    assert trainer.state.best_model_checkpoint == str(best)
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    assert fault_of(best) is None
    trainer._load_best_model()
    half(best / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"the best model cannot be loaded, .*: model.safetensors has"):
        trainer._load_best_model()


@pytest.mark.parametrize(
    ("there", "step", "limit", "best", "left"),
    [
        ((1, 2, 3), 3, 2, None, {2, 3}),
        ((1, 2, 3), 3, 1, 1, {1, 3}),
        ((1, 2, 8, 9), 2, 1, None, {2}),  # 8 and 9 were passed over, or are of an earlier run
        ((1, 2, 8, 9), 2, 3, None, {1, 2, 9}),
        ((1, 2, 3), 3, None, None, {1, 2, 3}),
    ],
)
def test_the_checkpoint_just_saved_stays_whatever_lies_beside_it(tmp_path, there, step, limit, best, left):
    for number in there:
        (tmp_path / f"checkpoint-{number}").mkdir()
    (tmp_path / "checkpoint-mine").mkdir()
    state = SimpleNamespace(global_step=step, best_model_checkpoint=best and str(tmp_path / f"checkpoint-{best}"))
    remove_old(SimpleNamespace(state=state, args=SimpleNamespace(save_total_limit=limit)), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{n}" for n in left} | {"checkpoint-mine"}


@pytest.mark.attack(
    "disk",
    "SIGKILL or an error while a checkpoint is saved, over a whole one of the same step too",
    "the whole one stays; what was half saved is not taken for a checkpoint, and is removed",
)
def test_a_checkpoint_that_is_not_saved_to_its_end_leaves_the_one_before(
    tmp_path, student_path, teacher_path, monkeypatch
):
    trainer = opd_trainer(tmp_path, student_path, teacher_path, save_strategy="steps", save_steps=1)
    trainer.train()
    out = tmp_path / "out"
    before = (out / "checkpoint-1" / MANIFEST).read_text()

    def ends(*args):
        assert (out / APART / "checkpoint-1" / "model.safetensors").is_file()
        raise KeyboardInterrupt  # as SIGKILL: nothing is tidied up

    monkeypatch.setattr(torch, "save", ends)
    with pytest.raises(KeyboardInterrupt):
        trainer._save_checkpoint(trainer.model, trial=None)
    monkeypatch.undo()
    assert (out / APART).is_dir()
    assert (out / "checkpoint-1" / MANIFEST).read_text() == before
    assert newest_whole(str(out)) == out / "checkpoint-1"
    trainer.train(resume_from_checkpoint=True)
    assert not (out / APART).exists()
