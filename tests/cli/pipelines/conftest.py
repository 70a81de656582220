import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from opd_trl.cli.main import main


REPO = Path(__file__).parents[3]
# A stage that writes what it is told, and can wait, fail and leave a process behind.
WORK = """
import argparse, os, pathlib, subprocess, sys, time
parser = argparse.ArgumentParser()
for name in ("output", "text", "source", "side"):
    parser.add_argument("--" + name)
for name in ("wait", "fail"):
    parser.add_argument("--" + name, type=float, default=0)
parser.add_argument("--stay", action="store_true")
args = parser.parse_args()
print("says", args.text, flush=True)
print("warns", args.text, file=sys.stderr, flush=True)
folder = pathlib.Path(args.output)
folder.mkdir(parents=True, exist_ok=True)
source = pathlib.Path(args.source).read_text() if args.source else ""
(folder / "part.txt").write_text("begun")
if args.stay:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "child").write_text(str(child.pid))
(folder / "pid").write_text(str(os.getpid()))
time.sleep(args.wait)
(folder / "pid").unlink()
if args.fail:
    sys.exit(int(args.fail))
(folder / "text.txt").write_text(source + str(args.text))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with the script of the stages; stages are ended within a second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPD_TRL_PIPELINE_GRACE", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path


@pytest.fixture
def write_pipeline(here):
    """Write three stages, each reading what the one before wrote, with changes to their arguments; return the file."""

    def write(changes: dict | None = None, **top) -> str:
        stages = {
            "one": {"args": {"text": "a"}},
            "two": {"args": {"text": "b", "source": "{one}/text.txt"}},
            "three": {"args": {"text": "c", "source": "{two}/text.txt"}},
        }
        for name, stage in stages.items():
            stage["run"] = "python work.py"
            stage["args"]["output"] = f"{{output_dir}}/{name}"
            stage["args"] |= (changes or {}).get(name, {})
        Path("p.yaml").write_text(yaml.safe_dump({"output_dir": "run", "stages": stages, **top}, sort_keys=False))
        return "p.yaml"

    return write


@pytest.fixture
def run(here, capfd):
    """Run `opd-trl pipeline` in this process; return its exit status and its text."""

    def call(*argv: str) -> tuple[int, str]:
        capfd.readouterr()
        status = main(["pipeline", "--config", "p.yaml", *argv])
        printed = capfd.readouterr()
        return status, printed.out + printed.err

    return call


@pytest.fixture
def start(here):
    """Start `opd-trl pipeline` as a process; whatever is left of it ends with the test."""
    started = []

    def call(*argv: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "opd_trl.cli.main", "pipeline", "--config", "p.yaml", *argv]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def record() -> dict:
    """The stages in the record."""
    return json.loads(Path("run/pipeline.json").read_text())["stages"]


def alive(pid: int) -> bool:
    """Does a process run? One that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
