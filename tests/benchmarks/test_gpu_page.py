"""The page of `benchmarks/gpu.py`: it shows the lines that are kept here, or says that there are none."""

import gpu
import loss
import pytest
import steps
from gpu import STAGES
from internalise import all_cells
from lines import FOLDER, PHASES, Results, marks_of, read_lines
from measure import spread
from pages import NOTHING, page, text

from opd_trl.data.files import write_jsonl

from .lines import written


WHERE = {
    "size": "full",
    "machine": "NVIDIA H100 80GB HBM3",
    "date": "2026-11-28",
    "torch": "2.11.0+cu130",
    "trl": "1.16.0",
    "transformers": "5.17.0",
    "liger-kernel": "0.8.5",
    "command": "python benchmarks/gpu.py --stage loss steps --results /results",
    "commit": "abc1234",
}


def around(median):
    return spread([0.9 * median, median, 1.2 * median])


def loss_lines():
    """A line for every case of a full run: each twice as long as TRL's kernel, and one that did not fit."""
    yield {"case": "ceilings", "bytes_per_second": 3.0e12, "flops_per_second": 8.0e14}
    for group, cases in loss.groups(loss.SIZES["full"]).items():
        for name, case in cases.items():
            line = {"case": f"{group}: {name}", "name": name, "group": group, "tokens": case.setting.tokens}
            if group == "kernels":
                kernel = {"name": "vectorized_elementwise_kernel<4, exp_kernel_cuda", "share": 0.1, "ms": 1.0}
                yield line | {"kernels": [kernel | {"calls": 160}] * 10}
            elif (name, group) == (loss.DENSE, "long"):
                yield line | {"failed": "out of memory"}
            else:
                seconds, mib = (0.1, 1000) if name == "TRL kernel" else (0.2, 500)
                flops = (case.products or 0) * 8e12
                yield line | {"seconds": around(seconds), "extra_mib": mib, "products": case.products, "flops": flops}


def step_lines():
    for lengths, name in steps.cases("full"):
        factor = 1 if name.startswith(("Dist", "SDFT")) else 0.5
        factor *= 2 if name.startswith(("SDFT", "OPSD")) else 1
        line = {"case": f"{lengths}: {name}", "lengths": lengths, "trainer": name, "peak_mib": int(20000 * factor)}
        times = {"seconds": 10, "without_generation": 4, "loss_and_backward": 3}
        line |= {time: around(seconds * factor) for time, seconds in times.items()}
        yield line | {"phases": dict.fromkeys(PHASES, factor), "extra_mib": int(1000 * factor)}


def memory_lines():
    common = {"prompts": 8, "plan_peak": "backward", "verdict": "fits"}
    yield {"case": "peak: OPDTrainer (default)", "peak_mib": 10000, "plan_mib": 12000} | common
    planned = {"search": "largest: OPDTrainer (default), 24 GiB", "plan_fits": 12, "plan_tight": 14}
    for prompts, failed in ((16, True), (10, False), (13, False), (14, True)):
        line = {"case": f"{planned['search']}: {prompts} prompts", "prompts": prompts} | planned
        yield line | ({"failed": "out of memory"} if failed else {"peak_mib": 20000})


def real_lines():
    for rule, objective, seed in all_cells():
        line = {"case": f"{rule}, {objective}, seed {seed}", "rule": rule, "objective": objective, "seed": seed}
        yield line | {"greedy": [1, seed > 0], "sampled": [0, 1], "elsewhere": [0, 0]}
    figure = {"value": 0.25, "low": 0.2, "high": 0.3}
    yield {"case": "mathematics before", "figures": {"accuracy": figure}}
    yield {"case": "mathematics training", "steps": 20, "wall_seconds": 60.0}


@pytest.fixture
def kept(tmp_path):
    """A folder with the lines of a whole run on one card, and a dry run beside it."""
    made = {"loss": loss_lines(), "steps": step_lines(), "memory": memory_lines(), "real": real_lines()}
    for stage, lines in made.items():
        write_jsonl(tmp_path / f"gpu_{stage}.jsonl", (line | WHERE for line in lines))
    elsewhere = Results(tmp_path / "gpu_loss.jsonl", WHERE | {"size": "small", "machine": "a CPU"})
    elsewhere.add(case="ceilings", bytes_per_second=1e9, flops_per_second=1e9)
    return tmp_path


def kept_of(stage, folder):
    return [line for line in read_lines(folder / f"gpu_{stage}.jsonl") if line["size"] == "full"]


def rows(table: str) -> dict[str, list[str]]:
    """First cell -> the others, of the rows of all tables in a text."""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines() if row.startswith("|")]
    return {first: rest for first, *rest in cells}


def test_the_page_shows_the_lines_that_are_kept_here():
    made = page({stage: kept_of(stage, FOLDER) for stage in STAGES})
    assert written("gpu.md", "gpu") == made, "python benchmarks/gpu.py --write docs/gpu.md"


def test_without_lines_the_page_says_in_one_line_that_there_are_none():
    assert page({stage: [] for stage in STAGES}) == NOTHING
    assert "\n" not in NOTHING


def test_a_page_is_written_from_the_lines_of_full_runs_with_their_conditions(kept, tmp_path):
    target, (begin, end) = tmp_path / "gpu.md", marks_of("gpu")
    target.write_text(f"# Title\n\n{begin}\n{end}\n")
    assert gpu.main(["--write", str(target), "--results", str(kept)]) == 0
    written = target.read_text()
    assert written.count(WHERE["machine"]) >= 4
    assert written.count("Conditions: ") == 4
    for value in (WHERE["torch"], WHERE["transformers"], WHERE["date"], f"`{WHERE['command']}`", WHERE["commit"]):
        assert written.count(value) == 4
    assert "a CPU" not in written


def test_the_tables_of_all_stages_fit_what_comes_back_of_an_output(kept, capsys):
    assert gpu.main(["--table", "--results", str(kept)]) == 0
    assert len(capsys.readouterr().out) < 12_000


def test_a_loss_is_compared_with_the_kernel_of_trl_and_with_the_floor_of_its_products(kept):
    table = text("loss", kept_of("loss", kept))
    assert "moves 3.00 TB/s" in table
    assert "runs at 800 TFLOP/s" in table
    found = rows(table.split("**8192 tokens**")[1].split("**32768")[0])
    assert found["full vocabulary"] == ["200.0 (180.0 to 240.0)", "2.00", "1.00", "500", "0.50", "20%"]
    assert found["TRL kernel"] == ["100.0 (90.0 to 120.0)", "1.00", "0.50", "1000", "1.00", ""]
    assert rows(table.split("**32768 tokens**")[1])["dense autograd, Top-20"][0] == "out of memory"
    assert rows(table.split("Against top_k")[1])["renormalised"][:2] == ["", "200.0 (1.00)"]


def test_a_step_is_compared_with_the_trainer_of_trl_of_its_own_pair(kept):
    found = rows(text("steps", kept_of("steps", kept)))
    assert found["OPSDTrainer (default)"][:3] == ["10.00 (9.00 to 12.00)", "0.50", "0.50"]
    assert found["OPDTrainer (default)"][-4:] == ["10000", "0.50", "500", "0.50"]
    assert found["SDFTTrainer, topk_logits"][1] == "1.00"


def test_the_largest_micro_batch_lies_between_what_fitted_and_what_did_not(kept):
    found = rows(text("memory", kept_of("memory", kept)))
    assert found["OPDTrainer (default), 24 GiB"] == ["13", "14", "12", "14"]
    assert found["OPDTrainer (default)"] == ["8", "10000", "12000", "1.20", "backward"]


def test_real_cells_are_means_over_seeds(kept):
    table = text("real", kept_of("real", kept))
    row = next(row for row in table.splitlines() if row.startswith("| json | jsd"))
    assert row == "| json | jsd | 3 | 0.83 | 0.50 | 0.00 |"
    assert rows(table)["mathematics training"] == ["20 steps in 60 s"]
    assert rows(table)["mathematics before"] == ["accuracy 0.250 [0.200, 0.300]"]
