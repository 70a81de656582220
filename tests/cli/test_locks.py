"""One run writes to a place: every command refuses a second one by a line that names the holder."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from opd_trl import locks
from opd_trl.cli.main import main
from opd_trl.locks import IN_FOLDER, LockError, writing
from tests.trainers.build import opd_trainer


HOLDS = "import sys\nfrom opd_trl.locks import writing\nwith writing(sys.argv[1], folder={}):\n    print(flush=True)\n"
COUNTS = """
from pathlib import Path
from opd_trl.locks import LockError, writing
done = 0
while done < 40:
    try:
        with writing("rows.jsonl", folder=False):
            count = int(Path("count").read_text())
            Path("count").write_text(str(count + 1))
            done += 1
    except LockError:
        pass
"""


def python(*argv: str, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", *argv], env=environment, text=True, **options)


@pytest.fixture
def hold():
    """Let another process hold the lock of a place until the test ends; return that process."""
    holders = []

    def start(place: str, *, folder: bool = True) -> subprocess.Popen:
        script = HOLDS.format(folder) + "    sys.stdin.read()\n"
        holders.append(python(script, place, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert holders[-1].stdout.readline() == "\n"
        return holders[-1]

    yield start
    for holder in holders:
        holder.communicate(timeout=60)


@pytest.fixture
def lines(student_path, write_rows):
    """Command lines that write to a file or a folder whose name has a space, and whether it is a folder."""
    write_rows("rows.jsonl")
    model = ("--model", student_path)
    sampled = ("--max-new-tokens", "2", "--device", "cpu")
    student = (
        "--model_name_or_path",
        student_path,
        "--dataset_name",
        "rows.jsonl",
        "--privileged_context",
        "Be brief.",
    )
    return {
        "data prepare": ("data", "prepare", "rows.jsonl", "--output"),
        "data procedural": ("data", "procedural", "--task", "chain_sum", "--count", "3", "--output"),
        "data traces": ("data", "traces", *model, "--data", "rows.jsonl", *sampled, "--output"),
        "data filter": ("data", "filter", "rows.jsonl", "--output"),
        "toy": ("toy", "--output"),
        "eval": ("eval", *model, "--suite", "rules", "--rule", "one_sentence:a", "--data", "rows.jsonl", "--output"),
        "reproduce": ("reproduce", "mechanisms", "--quick", "--output"),
        "demo": ("demo", *model, "--output"),
        "opsd": ("opsd", *student, "--use_cpu", "--output_dir"),
    }


@pytest.mark.attack("processes", "a second run into the folder or file of one that runs", "one line, with its number")
@pytest.mark.parametrize(
    "name",
    ["data prepare", "data procedural", "data traces", "data filter", "toy", "eval", "reproduce", "demo", "opsd"],
)
def test_a_command_refuses_a_place_that_another_process_writes_to(name, lines, hold, here, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")  # the demo sets it
    is_file = name.startswith("data")
    place = "my runs/x.jsonl" if is_file else "my runs/x"
    holder = hold(place, folder=not is_file)
    before = sorted(here.rglob("*"))
    try:
        status = main([*lines[name], place])
    except SystemExit as exit_:
        status = exit_.code
    error = capsys.readouterr().err
    option = "output_dir" if name == "opsd" else "--output"
    assert status == 2
    assert f"opd-trl {name}: error: {option} {place} is in use: process {holder.pid} on " in error
    assert f" writes there. Wait for it, end it, or give another {option}.\n" in error
    assert sorted(here.rglob("*")) == before


@pytest.mark.attack("processes", "a second script that calls `OPDTrainer.train`", "LockError; nothing is written")
def test_a_trainer_refuses_the_folder_of_another_process_and_takes_its_own_twice(
    tmp_path, student_path, teacher_path, hold
):
    out = tmp_path / "out"
    holder = hold(str(out))
    with pytest.raises(LockError, match=rf"output_dir {out} is in use: process {holder.pid} on "):
        opd_trainer(tmp_path, student_path, teacher_path).train()
    assert [path.name for path in out.iterdir()] == [IN_FOLDER]
    holder.communicate(timeout=60)
    for _ in range(2):
        opd_trainer(tmp_path, student_path, teacher_path).train()
    assert not (out / IN_FOLDER).exists()


@pytest.mark.attack("processes", "many processes that want one lock at once", "each has it alone, none is lost")
def test_the_lock_lets_one_in_at_a_time(here):
    Path("count").write_text("0")
    workers = [python(COUNTS) for _ in range(4)]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 4
    assert Path("count").read_text() == "160"
    assert [path.name for path in here.iterdir()] == ["count"]


@pytest.mark.attack("processes", "the lock of a dead process", "it is taken over")
def test_the_lock_of_a_killed_process_is_taken_over_and_leaves_nothing(hold, here):
    holder = hold("a run")
    holder.kill()
    holder.wait()
    assert re.fullmatch(rf"{holder.pid} on \S+\n", Path("a run", IN_FOLDER).read_text())
    with writing("a run"), writing("a run") as again:  # the second by what the first one calls
        assert again is None
        child = python(HOLDS.format(True), "a run", stdout=subprocess.PIPE)  # of the holder: it may write there
        assert child.communicate(timeout=60)[0] == "\n"
        assert re.match(rf"{os.getpid()} on ", Path("a run", IN_FOLDER).read_text())
    assert list(Path("a run").iterdir()) == []


@pytest.mark.attack("disk", "a place that cannot be written, a file system without locks", "one line; a warning")
def test_a_place_that_cannot_be_written_or_locked_is_said(here, monkeypatch, caplog):
    Path("file").touch()
    said = r"^--output file/x cannot be written: .*Give a place that can\.$"
    with pytest.raises(LockError, match=said), writing("file/x"):
        pass
    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks")))
    with writing("run"):
        Path("run/text").touch()
    assert "--output run cannot be locked" in caplog.text
    assert [path.name for path in Path("run").iterdir()] == ["text"]
