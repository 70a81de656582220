"""A dry run of `benchmarks/gpu.py` with tiny models on a CPU: every stage, and a second run on its lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import gpu_memory
import pytest
import steps
from filelock import FileLock
from gpu import STAGES
from lines import PHASES, Results, read_lines
from pages import TITLES
from trainers import PAIRS


ROOT = Path(__file__).parents[2]


def options(folder: Path) -> list[str]:
    """The dry run."""
    places = ("--work", str(folder / "work"), "--results", str(folder / "results"))
    return ["--size", "small", *places, "--commit", "abc"]


def lines_of(folder: Path) -> dict[str, list]:
    """By stage."""
    return {stage: read_lines(folder / "results" / f"gpu_{stage}.jsonl", Results.fields) for stage in STAGES}


SCRIPT = """import contextlib, gpu, loss, monitor, steps

if __name__ == "__main__":
    with open("{folder}/output.txt", "w") as output, contextlib.redirect_stdout(output):
        assert gpu.main({options}) == 0
    loss.main(["--tokens=16", "--vocab=64", "--hidden=8", "--rounds=1", "--no-sweeps", "--json={folder}/loss.json"])
    small = ["--model={folder}/work/models/student-small", "--prompts=2", "--completion-tokens=4"]
    steps.main([*small, "--pair=opd", "--rounds=1", "--json={folder}/steps.json"])
    monitor.LIMIT = 1  # time is not tested here
    monitor.main([*small, "--steps=4", "--json={folder}/monitor.json"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a dry run and then the scripts of `make bench` leave, which the workers of pytest share.

    They run in one process, so that one server forks the children of all.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "gpu"
    folder.mkdir(exist_ok=True)
    script = folder / "all.py"
    with FileLock(f"{folder}.lock"):
        if not (folder / "bench.txt").exists():
            script.write_text(SCRIPT.format(folder=folder, options=options(folder)))
            environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
            run = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 900}
            done = subprocess.run([sys.executable, str(script)], **run)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            (folder / "bench.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def dry_run(folder):
    """Folder, output and lines of the dry run."""
    return folder, (folder / "output.txt").read_text(), lines_of(folder)


def test_what_make_bench_runs_compares_on_this_cpu(folder):
    output = (folder / "bench.txt").read_text()
    assert "| renormalised Top-20 (default) |" in output
    assert "| dense autograd, full, frozen head |" in output
    results = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("loss", "steps", "monitor")}
    assert all(line["seconds"]["rounds"] == 1 for line in results["loss"]["lines"])
    assert [line["trainer"] for line in results["steps"]["rows"]["opd"]] == list(PAIRS["opd"])
    assert all(line["seconds"]["rounds"] == 1 for line in results["steps"]["rows"]["opd"])
    assert 0 < results["monitor"]["result"]["share"] <= results["monitor"]["result"]["worst_share"] < 1


def test_every_stage_has_its_lines_in_a_file_of_its_own(dry_run):
    folder, _, lines = dry_run
    files = sorted(path.name for path in (folder / "results").iterdir())
    assert files == sorted(f"gpu_{stage}.jsonl" for stage in STAGES)
    assert {line["case"] for line in lines["steps"]} == {f"{kind}: {name}" for kind, name in steps.cases("small")}
    assert {line["trainer"] for line in lines["steps"]} == set(steps.TRAINERS)
    sweeps = {"top_k", "tokens", "vocab", "chunk_size", "loss_memory_mib"}
    assert {line.get("group") for line in lines["loss"]} >= {None, "main", "long", "kernels", *sweeps}
    assert [line["case"] for line in lines["real"]] == ["pirate, before, seed 0", "pirate, jsd, seed 0"]
    carried = {"size", "machine", "date", "torch", "trl", "transformers", "command", "commit"}
    assert all(carried <= line.keys() for found in lines.values() for line in found)


def test_nothing_failed_other_than_what_is_to_run_out_of_memory(dry_run):
    failed = {line["case"] for found in dry_run[2].values() for line in found if "failed" in line}
    assert failed == {f"largest: OPDTrainer (default), 1 MiB: {n} prompts" for n in (1, 2)}


def test_the_tables_come_last_and_fit_what_comes_back_of_an_output(dry_run):
    output = dry_run[1]
    tables = output[output.index("### The loss step") :]
    assert all(f"### {title}" in tables for title in TITLES.values())
    assert "FAILED" not in output
    assert len(tables) < 12_000
    assert tables.strip().splitlines()[-1].startswith("Conditions: ")


def test_a_second_run_measures_nothing_and_shows_the_same(dry_run, capsys):
    folder, output, lines = dry_run
    (folder / "work" / "logs" / "probe.txt").unlink()
    assert gpu.main(options(folder)) == 0
    assert not (folder / "work" / "logs" / "probe.txt").exists()  # no process was started
    assert lines_of(folder) == lines
    assert capsys.readouterr().out.splitlines()[-1] == output.splitlines()[-1]


def test_the_phases_of_a_step_add_up_to_it_and_a_stand_in_takes_no_time_to_generate(dry_run):
    generation = {"log-normal": [], "equal": []}
    for line in dry_run[2]["steps"]:
        phases, whole = line["phases"], line["seconds"]["median"]
        assert list(phases) == list(PHASES)
        assert sum(phases.values()) == pytest.approx(whole)
        assert line["without_generation"]["median"] == pytest.approx(whole - phases["generation"])
        assert all(phases[name] > 0 for name in ("student", "loss", "backward", "optimizer"))
        assert (phases["teacher"] > 0) == (line["trainer"] != "GRPOTrainer, reward")
        generation[line["lengths"]].append(phases["generation"])
        assert line["loss_and_backward"]["median"] < line["without_generation"]["median"]
        assert 0 <= line["extra_mib"] <= line["peak_mib"]
    assert max(generation["log-normal"]) < min(generation["equal"])


def test_all_trainers_see_the_same_prompts_and_teachers_of_opsd_read_the_context(dry_run):
    for line in dry_run[2]["steps"]:
        setup = steps.task_of(line["trainer"], line["lengths"], "small", "cpu", PATHS, Path()).setup
        longest = gpu_memory.prompt_tokens(setup)
        if line["trainer"] in PAIRS["grpo"]:  # a group of one prompt, which need not be the longest
            assert line["prompt_tokens"] <= longest
            continue
        assert line["prompt_tokens"] == longest
        if line["trainer"].startswith(("SDFT", "OPSD")):
            assert line["teacher_prompt_tokens"] == gpu_memory.teacher_prompt_tokens(setup)


PATHS = {"student": "student", "teacher": "teacher"}


def test_plan_is_asked_for_the_run_that_is_made(dry_run):
    (peak,) = (line for line in dry_run[2]["memory"] if "search" not in line)
    assert peak["plan_peak"] in ("generation", "teacher's forward", "loss", "backward")
    assert peak["verdict"] == "fits"
    assert peak["peak_mib"] > 0
    trials = [line for line in dry_run[2]["memory"] if "search" in line]
    assert [(line["prompts"], "failed" in line) for line in trials] == [(2, False), (2, True), (1, True)]
    assert all(line["plan_fits"] == line["plan_tight"] == 2 for line in trials)


def test_kernels_are_listed_by_their_share_of_the_time(dry_run):
    for line in dry_run[2]["loss"]:
        if line.get("group") == "kernels":
            shares = [kernel["share"] for kernel in line["kernels"]]
            assert shares == sorted(shares, reverse=True)
            assert 0.3 < sum(shares) <= 1.001
            assert len(shares) == 10
            assert all(kernel["calls"] >= 1 and len(kernel["name"]) <= 90 for kernel in line["kernels"])


def test_without_a_card_a_full_run_says_so_before_anything_else(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--device", "cuda", "--work", str(tmp_path / "work")])
    assert stopped.value.code == 2
    assert "no CUDA device here. --size small makes a dry run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
