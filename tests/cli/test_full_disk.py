"""A disk that is full, and places that cannot be written: one line that names file and remedy, and nothing is lost.

The limit on the size of a file stands for a full disk: both are an error of the write, for root and any file system.
"""

import json
import os
import resource
import signal
from pathlib import Path

import pytest

from opd_trl.cli.main import main
from opd_trl.durable import append_lines, atomically, write_json


@pytest.fixture
def limited():
    """Let no file grow above so many bytes: `limited(10)`; `limited(None)` ends it."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    limit(None)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def work(here) -> Path:
    """A working directory with rows, a run log and a pipeline, and with places that cannot be written."""
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1), "completion": f"So \\boxed{{{i + 1}}}."} for i in range(1000)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("run/run_log").mkdir(parents=True)
    session = {"started": "2026-01-01T00:00:00+00:00", "ended": None, "outcome": None, "first_step": 0, "max_steps": 3}
    session |= {"argv": [], "trainer": "OPDTrainer", "method": None, "student": "x", "teachers": {}, "config": {}}
    session |= {"differs": {}, "versions": {}, "processes": 1, "device": "cpu"}
    Path("run/run_log/run.json").write_text(json.dumps({"format": 1, "sessions": [session]}))
    Path("run/run_log/log.jsonl").write_text('{"step": 1, "session": 0, "seconds": 1.0, "loss": 1.0}\n')
    Path("pipeline.yaml").write_text(PIPELINE)
    Path("a_file").write_text("of the user")
    Path("a_loop").symlink_to("a_loop")
    return here


#: A command, and the places in which its output is tried: one in each, all in the cheapest.
PLACES = ("a_file", "a_loop", "n" * 300, "/sys/opd_trl", "full")
COMMANDS = {
    "data filter": (["data", "filter", "rows.jsonl", "--output", "{}/x.jsonl"], PLACES),
    "data prepare": (["data", "prepare", "rows.jsonl", "--output", "{}/x.jsonl"], ("full",)),
    "toy": (["toy", "--output", "{}"], ("full",)),
    "recipes copy": (["recipes", "copy", "smoke/opd", "{}"], PLACES),
    "report": (["report", "run", "--output", "{}/page.html"], PLACES),
    "report --png": (["report", "run", "--png", "{}"], ("a_file",)),
    "pipeline": (["pipeline", "--config", "pipeline.yaml", "--set", "output_dir={}"], ("a_file", "full")),
    "reproduce": (["reproduce", "mechanisms", "--quick", "--output", "{}"], ("a_file",)),
}
PIPELINE = """
output_dir: unset
stages:
  filter:
    run: opd-trl data filter
    args: {source: rows.jsonl, output: sft.jsonl}
"""


@pytest.mark.attack(
    "disk",
    "an output in a file, a loop of links, a name too long, a folder of the kernel, or on a full disk",
    "one line with the file and the remedy, status 2; nothing half written is left",
)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_disk_refuses_is_one_line(work, limited, capsys, command):
    argv, places = COMMANDS[command]
    for place in places:
        limited(10 if place == "full" else None)
        assert main([part.format(place) for part in argv]) == 2, place
        limited(None)
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("opd-trl")]
        assert len(error) == 1, error
        assert error[0].startswith(f"opd-trl {command.split()[0]}")
        assert f" {place}" in error[0]
        assert "Give " in error[0] or "give " in error[0]
    assert Path("a_file").read_text() == "of the user"
    assert not any(work.rglob(".writing.*"))


@pytest.mark.attack("disk", "a full disk while a file is replaced", "the old one stays as it was, and is named")
def test_a_file_is_replaced_whole_or_not_at_all(work, limited):
    write_json(Path("figures.json"), {"a": 1})
    before = Path("figures.json").read_text()
    limited(100)
    with pytest.raises(OSError, match=r"File too large: 'figures.json'"):
        write_json(Path("figures.json"), {"a": "x" * 1000})
    assert Path("figures.json").read_text() == before
    with pytest.raises(OSError, match=r"File too large: 'lines.jsonl'"):
        append_lines(Path("lines.jsonl"), [{"a": "x" * 1000}])
    limited(None)
    assert sorted(path.name for path in work.iterdir() if "figures" in path.name or "writing" in path.name) == [
        "figures.json"
    ]


def test_a_device_is_written_to_and_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomically(pipe) as file:
        file.write("figures")
    assert os.read(reader, 100) == b"figures"
    os.close(reader)
    assert pipe.is_fifo()
