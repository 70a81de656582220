"""Which stages a second run repeats, and what it says."""

import hashlib
import re
from pathlib import Path

import pytest
import yaml

from opd_trl.cli.pipelines.document import read_pipeline

from .conftest import record


def states(text: str) -> dict[str, str]:
    """The table at the end: stage -> state."""
    rows = re.findall(r"^(one|two|three) +(ran|skipped|failed|killed|not run)\b", text, re.MULTILINE)
    return dict(rows)


RAN = {"one": "ran", "two": "ran", "three": "ran"}
SKIPPED = dict.fromkeys(RAN, "skipped")


def test_stages_run_in_order_and_each_reads_what_the_one_before_wrote(write_pipeline, run):
    write_pipeline()
    status, text = run()
    assert status == 0
    assert states(text) == RAN
    assert Path("run/three/text.txt").read_text() == "abc"


def test_what_stages_say_is_on_the_screen_and_in_their_logs(write_pipeline, run):
    write_pipeline()
    _, text = run()
    for letter, name in zip("abc", RAN, strict=True):
        log = Path(f"run/logs/{name}.log").read_text()
        for line in (f"says {letter}", f"warns {letter}"):
            assert line in text
            assert line in log


def test_the_record_holds_command_hashes_times_and_versions(write_pipeline, run):
    write_pipeline()
    run()
    entry = record()["two"]
    digest = hashlib.sha256(b"a").hexdigest()
    assert entry["command"][1:4] == ["work.py", "--text", "b"]
    assert entry["arguments"]["source"] == "run/one/text.txt"
    assert entry["inputs"]["run/one/text.txt"] == {"sha256": digest, "bytes": 1}
    assert entry["inputs"]["work.py"]["sha256"] == hashlib.sha256(Path("work.py").read_bytes()).hexdigest()
    assert entry["outputs"]["run/two"]["files"]["text.txt"] == hashlib.sha256(b"ab").hexdigest()
    assert (entry["status"], entry["exit_status"]) == ("done", 0)
    assert entry["start"] <= entry["end"]
    assert entry["seconds"] > 0
    assert {"python", "opd_trl", "trl", "torch"} <= entry["versions"].keys()
    assert len(entry["arguments_sha256"]) == 64


def test_a_second_run_skips_what_is_unchanged_and_says_so(write_pipeline, run):
    write_pipeline()
    run()
    before = Path("run/pipeline.json").read_bytes()
    status, text = run()
    assert status == 0
    assert states(text) == SKIPPED
    assert text.count("command, inputs and outputs are unchanged") == 3
    assert "says" not in text
    assert Path("run/pipeline.json").read_bytes() == before


def test_a_changed_argument_runs_its_stage_and_all_that_follow_and_keeps_what_was_there(write_pipeline, run):
    write_pipeline()
    run()
    write_pipeline({"two": {"text": "B"}})
    status, text = run()
    assert status == 0
    assert states(text) == {"one": "skipped", "two": "ran", "three": "ran"}
    assert "two: python work.py: runs, text: 'b' is 'B' now" in text
    assert Path("run/three/text.txt").read_text() == "aBc"
    kept = [path / "text.txt" for path in Path("run").glob("*.before-*")]
    assert sorted(path.read_text() for path in kept) == ["ab", "abc"]
    assert "run/two of an earlier run is kept as run/two.before-" in text


def test_set_changes_an_argument_without_the_file(write_pipeline, run):
    write_pipeline()
    run()
    _, text = run("--set", "three.text=C")
    assert states(text) == {"one": "skipped", "two": "skipped", "three": "ran"}
    assert Path("run/three/text.txt").read_text() == "abC"


def test_set_takes_another_folder(write_pipeline, run):
    write_pipeline()
    assert run("--set", "output_dir=other")[0] == 0
    assert Path("other/three/text.txt").read_text() == "abc"
    assert not Path("run").exists()


def test_an_output_altered_by_hand_is_named_and_made_again(write_pipeline, run):
    write_pipeline()
    run()
    Path("run/two/text.txt").write_text("by hand")
    status, text = run()
    assert status == 0
    assert "two: python work.py: runs, output run/two changed: text.txt" in text
    assert states(text) == {"one": "skipped", "two": "ran", "three": "ran"}
    assert Path("run/three/text.txt").read_text() == "abc"
    assert [p.read_text() for p in Path("run").glob("two.before-*/text.txt")] == ["by hand"]
    assert states(run()[1]) == SKIPPED


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda: Path("run/two/text.txt").unlink(), "output run/two gone: text.txt"),
        (lambda: Path("run/two/more.txt").write_text(""), "output run/two added: more.txt"),
        (lambda: Path("run/two").rename("elsewhere"), "output run/two is missing"),
    ],
)
def test_a_missing_or_added_output_is_named(damage, told, write_pipeline, run):
    write_pipeline()
    run()
    damage()
    _, text = run()
    assert told in text
    assert states(text) == {"one": "skipped", "two": "ran", "three": "ran"}


def test_a_changed_script_runs_its_stages_again(write_pipeline, run, here):
    write_pipeline()
    run()
    with (here / "work.py").open("a") as file:
        file.write("# another\n")
    _, text = run()
    assert "one: python work.py: runs, input work.py changed" in text


def test_a_changed_input_from_outside_runs_its_stage_again(write_pipeline, run):
    Path("seed.txt").write_text("0")
    write_pipeline({"one": {"source": "./seed.txt"}})
    run()
    Path("seed.txt").write_text("1")
    _, text = run()
    assert "one: python work.py: runs, input ./seed.txt changed" in text
    assert Path("run/three/text.txt").read_text() == "1abc"


def test_from_runs_a_stage_in_any_case_and_takes_those_before_it_as_they_are(write_pipeline, run):
    write_pipeline()
    run()
    write_pipeline({"one": {"text": "A"}})
    _, text = run("--from", "two")
    assert states(text) == {"two": "ran", "three": "ran"}
    assert "two: python work.py: runs, asked for" in text
    assert Path("run/three/text.txt").read_text() == "abc"


def test_from_needs_what_comes_before(write_pipeline, run):
    write_pipeline()
    status, text = run("--from", "two")
    assert status == 2
    assert "--from cannot start behind stage one: it has not been done. Start with --from one." in text


def test_until_stops_after_a_stage(write_pipeline, run):
    write_pipeline()
    status, text = run("--until", "two")
    assert status == 0
    assert states(text) == {"one": "ran", "two": "ran"}
    assert not Path("run/three").exists()
    assert states(run()[1]) == {"one": "skipped", "two": "skipped", "three": "ran"}


def test_a_stage_that_fails_ends_the_run_and_is_repeated(write_pipeline, run):
    write_pipeline({"two": {"fail": 3}})
    status, text = run()
    assert status == 1
    assert states(text) == {"one": "ran", "two": "failed", "three": "not run"}
    assert "two: failed with status 3; its log: run/logs/two.log" in text
    assert record()["two"]["exit_status"] == 3
    status, text = run("--set", "two.fail=0")
    assert status == 0
    assert states(text) == {"one": "skipped", "two": "ran", "three": "ran"}


def test_a_failed_stage_runs_again_though_nothing_has_changed(write_pipeline, run):
    write_pipeline({"two": {"fail": 3}})
    run()
    _, text = run()
    assert "two: python work.py: runs, failed with status 3" in text
    assert len(Path("run/logs/two.log").read_text().split("===")) == 3


def test_a_stage_that_does_not_write_what_it_declares_has_failed(write_pipeline, run):
    write_pipeline()
    content = yaml.safe_load(Path("p.yaml").read_text())
    content["stages"]["one"]["outputs"] = ["{output_dir}/one/text.txt", "{output_dir}/one/model"]
    content["stages"]["two"]["args"]["source"] = "{one}"
    Path("p.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    status, text = run()
    assert status == 1
    assert "one: ended well without writing run/one/model" in text
    assert states(run()[1])["one"] == "failed"


def test_a_stage_whose_input_is_not_there_is_not_started(write_pipeline, run):
    write_pipeline({"two": {"source": "{one}/other.txt"}})
    status, text = run()
    assert status == 1
    assert "two: not started: its input run/one/other.txt is missing" in text
    assert "two" not in record()


def test_what_the_pipeline_has_not_written_is_not_touched(write_pipeline, run):
    write_pipeline()
    Path("run/two").mkdir(parents=True)
    Path("run/two/mine.txt").write_text("mine")
    status, text = run()
    assert status == 2
    assert "stage two would write to run/two, which is there and was not written by this pipeline" in text
    assert [path.name for path in Path("run").iterdir()] == ["two"]


def test_a_dry_run_says_what_would_run_and_writes_nothing(write_pipeline, run, here):
    write_pipeline()
    before = sorted(here.rglob("*"))
    status, text = run("--dry-run")
    assert status == 0
    assert "[1/3] one runs: has not run" in text
    assert "[2/3] two runs: comes after one" in text
    assert "work.py --text b --source run/one/text.txt --output run/two" in text
    assert sorted(here.rglob("*")) == before


def test_needs_makes_a_stage_depend_on_one_that_its_values_do_not_name(write_pipeline, run):
    write_pipeline({"two": {"source": ""}})
    content = yaml.safe_load(Path("p.yaml").read_text())
    content["stages"]["two"]["needs"] = "one"
    Path("p.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert run()[0] == 0
    assert "run/one" in record()["two"]["inputs"]


def test_a_damaged_record_is_refused(write_pipeline, run):
    write_pipeline()
    run()
    Path("run/pipeline.json").write_text('{"stages": ')
    status, text = run()
    assert status == 2
    assert "run/pipeline.json is not a record of a pipeline" in text


def test_figures_of_a_result_are_in_the_table(write_pipeline, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    script = (
        'import sys, pathlib; p = pathlib.Path(sys.argv[2]); p.mkdir(parents=True); (p / "result.json").write_text('
    )
    Path("judge.py").write_text(
        script + '\'{"figures": {"avg@4": {"value": 0.625, "low": 0.5, "high": 0.75, "unit": "%"}}}\')\n'
    )
    write_pipeline()
    content = yaml.safe_load(Path("p.yaml").read_text())
    content["stages"] = {"eval": {"run": "python judge.py", "args": {"output": "{output_dir}/eval"}}}
    Path("p.yaml").write_text(yaml.safe_dump(content))
    _, text = run()
    assert "avg@4 0.625 [0.5, 0.75]" in text
    assert "avg@4 0.625 [0.5, 0.75]" in run()[1]


def test_a_result_of_another_shape_is_left_out_of_the_table(write_pipeline, run):
    script = "import sys, pathlib; p = pathlib.Path(sys.argv[2]); p.mkdir(parents=True); "
    Path("judge.py").write_text(script + """(p / "result.json").write_text('{"figures": [1, 2]}')""")
    write_pipeline()
    content = yaml.safe_load(Path("p.yaml").read_text())
    content["stages"] = {"eval": {"run": "python judge.py", "args": {"output": "{output_dir}/eval"}}}
    Path("p.yaml").write_text(yaml.safe_dump(content))
    assert run()[0] == 0


@pytest.mark.attack("disk", "a pipeline's `data` stage again, with another argument", "its files are moved aside")
def test_a_data_stage_runs_again_where_its_report_is_in_the_way(here, run):
    Path("rows.jsonl").write_text("".join(f'{{"prompt": "{i} + 1"}}\n' for i in range(40)))
    args = {"source": "rows.jsonl", "output": "run/made.jsonl"}
    stages = {"one": {"run": "opd-trl data prepare", "args": args}}
    Path("p.yaml").write_text(yaml.safe_dump({"output_dir": "run", "stages": stages}))
    assert run()[0] == 0
    assert run("--set", "one.max_rows=9")[0] == 0
    assert len(Path("run/made.jsonl").read_text().splitlines()) == 9
    kept = sorted(path.name.partition(".before-")[0] for path in Path("run").glob("made*.before-*"))
    assert kept == ["made.jsonl", "made.report.json"]


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ({"output": "x.jsonl"}, ["x.report.json", "x.jsonl.part", "x.jsonl.part.json"]),
        ({"output": "x.jsonl", "parts": "a=0.5,b=0.5"}, ["x.a.jsonl", "x.b.jsonl", "x.report.json"]),
        ({"output": "x.jsonl", "parts": ["a=0.5", "b=0.5"]}, ["x.a.jsonl", "x.b.jsonl", "x.report.json"]),
    ],
)
def test_what_lies_beside_the_rows_is_known(args, names, here):
    stages = {"one": {"run": "opd-trl data traces" if "parts" not in args else "opd-trl data prepare", "args": args}}
    Path("p.yaml").write_text(yaml.safe_dump({"stages": stages}))
    stage = read_pipeline("p.yaml", []).stages[0]
    assert [name for name in stage.beside if name in names] == names
