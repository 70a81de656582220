"""A dry run of `benchmarks/gpu.py` with tiny models on a CPU: every stage, and a second run on its lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import gpu_lines
import gpu_memory
import gpu_steps
import pytest
from filelock import FileLock
from gpu_lines import PHASES, STAGES
from gpu_page import TITLES


ROOT = Path(__file__).parents[2]


def command(folder: Path) -> subprocess.CompletedProcess[str]:
    """The dry run, with nothing else in its environment than the checkout."""
    words = [sys.executable, "benchmarks/gpu.py", "--size", "small"]
    words += ["--work", str(folder / "work"), "--results", str(folder / "results"), "--commit", "abc"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """Folder, output and lines of a dry run, which the workers of pytest share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "gpu"
    output = folder / "output.txt"
    with FileLock(f"{folder}.lock"):
        if not output.exists():
            done = command(folder)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            output.write_text(done.stdout)
    return folder, output.read_text(), {stage: gpu_lines.read(folder / "results", stage) for stage in STAGES}


def test_every_stage_has_its_lines_in_a_file_of_its_own(dry_run):
    folder, _, lines = dry_run
    files = sorted(path.name for path in (folder / "results").iterdir())
    assert files == sorted(f"gpu_{stage}.jsonl" for stage in STAGES)
    assert {line["case"] for line in lines["steps"]} == {
        f"{lengths}: {name}" for lengths in gpu_steps.LENGTHS for name in gpu_steps.TRAINERS
    }
    assert {line.get("group") for line in lines["loss"]} >= {None, "main", "long", "kernels", "top_k"}
    assert [line["case"] for line in lines["real"]] == ["pirate, before, seed 0", "pirate, jsd, seed 0"]
    carried = {"size", "machine", "date", "torch", "trl", "transformers", "liger-kernel", "command", "commit"}
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


def test_a_second_run_measures_nothing_and_shows_the_same(dry_run):
    folder, output, lines = dry_run
    (folder / "work" / "logs" / "probe.txt").unlink()
    again = command(folder)
    assert again.returncode == 0
    assert not (folder / "work" / "logs" / "probe.txt").exists()  # no process was started
    assert {stage: gpu_lines.read(folder / "results", stage) for stage in STAGES} == lines
    assert again.stdout.splitlines()[-1] == output.splitlines()[-1]


def test_the_phases_of_a_step_add_up_to_it_and_a_stand_in_takes_no_time_to_generate(dry_run):
    for line in dry_run[2]["steps"]:
        phases, whole = line["phases"], line["seconds"]["median"]
        assert list(phases) == list(PHASES)
        assert sum(phases.values()) == pytest.approx(whole)
        assert line["without_generation"]["median"] == pytest.approx(whole - phases["generation"])
        assert all(phases[name] > 0 for name in ("teacher", "student", "loss", "backward", "optimizer"))
        assert (phases["generation"] < 0.1 * whole) == (line["lengths"] == "log-normal")


def test_all_trainers_see_the_same_prompts_and_teachers_of_opsd_read_the_context(dry_run):
    for line in dry_run[2]["steps"]:
        setup = gpu_steps.task_of(line["trainer"], line["lengths"], "small", "cpu", PATHS, Path()).setup
        assert line["prompt_tokens"] == gpu_memory.prompt_tokens(setup)
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


def test_lines_of_another_card_are_kept_and_measured_anew(tmp_path):
    ours, other = ({"size": "full", "machine": name} for name in ("H100", "H200"))
    gpu_lines.Results(tmp_path, "loss", other).add("ceilings", rate=1)
    results = gpu_lines.Results(tmp_path, "loss", ours)
    assert results.done() == set()
    results.add("ceilings", rate=2)
    results.add("ceilings", rate=3)
    assert [line["rate"] for line in gpu_lines.read(tmp_path, "loss")] == [1, 3]
    results.clear()
    assert [line["rate"] for line in gpu_lines.read(tmp_path, "loss")] == [1]


def test_a_line_that_was_cut_is_named(tmp_path):
    results = gpu_lines.Results(tmp_path, "loss", {"size": "full", "machine": "H100"})
    results.add("ceilings", rate=2)
    path = gpu_lines.file_of(tmp_path, "loss")
    path.write_text(path.read_text() + json.dumps({"case": "x"})[:-3])
    with pytest.raises(ValueError, match=r"gpu_loss\.jsonl, line 2 is no line of a case .* Remove it"):
        results.done()
