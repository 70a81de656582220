"""Whatever ends a pipeline or a stage: its processes end, the record says so, the next run goes on."""

import os
import signal
import time
from pathlib import Path

import pytest

from .conftest import alive, record
from .test_rerun import states


def wait_for(path: str, seconds: float = 20) -> str:
    """Wait until a file has content."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if Path(path).is_file() and (text := Path(path).read_text()):
            return text
        time.sleep(0.02)
    raise TimeoutError(path)


def wait_until_dead(*pids: int, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while any(map(alive, pids)):
        assert time.monotonic() < end, f"{pids} still run"
        time.sleep(0.02)


@pytest.fixture
def waiting(write_pipeline, start):
    """A pipeline whose second stage waits; the process, and the ids of the stage and of the child that it started."""
    write_pipeline({"two": {"wait": 600, "stay": True}})
    process = start()
    pids = [int(wait_for("run/two/child")), int(wait_for("run/two/pid"))]
    return process, pids


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda x: str(x)
)
def test_a_signal_ends_the_stage_with_its_children_and_the_next_run_repeats_it(number, status, waiting, run):
    process, pids = waiting
    process.send_signal(number)
    text = process.communicate(timeout=20)[0]
    assert process.returncode == status
    wait_until_dead(*pids)
    assert record()["two"]["status"] == "killed"
    assert states(text) == {"one": "ran", "two": "killed", "three": "not run"}
    code, text = run("--set", "two.wait=0", "--set", "two.stay=false")
    assert code == 0
    assert states(text) == {"one": "skipped", "two": "ran", "three": "ran"}


def test_a_killed_pipeline_takes_its_stage_along_and_the_next_run_takes_over(waiting, run):
    process, pids = waiting
    process.kill()
    process.wait()
    assert record()["two"]["status"] == "running"
    code, text = run("--set", "two.wait=0", "--set", "two.stay=false")  # at once: it waits for the lock
    assert code == 0
    wait_until_dead(*pids)
    assert "two: python work.py: runs, was ended" in text
    assert states(text) == {"one": "skipped", "two": "ran", "three": "ran"}
    assert Path("run/three/text.txt").read_text() == "abc"


def test_the_next_run_waits_for_what_a_killed_pipeline_has_left(write_pipeline, start, run, here, monkeypatch):
    monkeypatch.setenv("OPD_TRL_PIPELINE_GRACE", "4")
    script = (here / "work.py").read_text()
    (here / "work.py").write_text("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + script)
    write_pipeline({"one": {"wait": 600}})
    process = start()
    pid = int(wait_for("run/one/pid"))
    process.kill()
    process.wait()
    assert run("--until", "one", "--set", "one.wait=0")[0] == 0
    assert not alive(pid)


def test_a_killed_stage_ends_the_pipeline_and_says_by_what(waiting, run):
    process, pids = waiting
    os.kill(pids[1], signal.SIGKILL)
    text = process.communicate(timeout=20)[0]
    assert process.returncode == 1
    assert "two: was ended by SIGKILL; its log: run/logs/two.log" in text
    assert record()["two"]["status"] == "killed"
    wait_until_dead(*pids)


def test_a_stage_has_time_to_end_by_itself(write_pipeline, start, here):
    tidy = "import signal, sys, pathlib\n"
    tidy += "signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path('tidy').write_text('done')))\n"
    (here / "work.py").write_text(tidy + (here / "work.py").read_text())
    write_pipeline({"one": {"wait": 600}})
    process = start()
    wait_for("run/one/pid")
    process.terminate()
    assert process.wait(timeout=20) == 143
    assert Path("tidy").read_text() == "done"


def test_a_stage_that_ignores_the_signal_is_killed_after_the_time_of_grace(write_pipeline, start, here):
    (here / "work.py").write_text(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + (here / "work.py").read_text()
    )
    write_pipeline({"one": {"wait": 600}})
    process = start()
    pid = int(wait_for("run/one/pid"))
    process.terminate()
    assert process.wait(timeout=20) == 143
    wait_until_dead(pid)


def test_processes_that_a_stage_leaves_behind_end_with_it(write_pipeline, run):
    write_pipeline({"one": {"stay": True}})
    assert run("--until", "one")[0] == 0
    wait_until_dead(int(Path("run/one/child").read_text()))


def test_a_second_run_of_the_same_pipeline_is_refused(waiting, run):
    process, _ = waiting
    status, text = run()
    assert status == 2
    assert f"run is in use: process {process.pid} on " in text
    assert process.poll() is None


def test_the_lock_of_a_dead_process_is_taken_over(write_pipeline, run):
    write_pipeline()
    Path("run").mkdir()
    Path("run/pipeline.lock").write_text(f"{2**22 + 1} on somewhere\n")
    assert run()[0] == 0
    assert Path("run/pipeline.lock").read_text() == ""


def test_the_record_is_whole_at_any_moment(write_pipeline, start):
    write_pipeline({name: {"wait": 0.2} for name in ("one", "two", "three")})
    process = start()
    wait_for("run/pipeline.json")
    while process.poll() is None:
        assert isinstance(record(), dict)
    assert [entry["status"] for entry in record().values()] == ["done"] * 3
