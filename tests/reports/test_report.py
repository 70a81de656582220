"""`opd-trl report`: its files, its figures and its refusals."""

import configparser
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.image import imread

import opd_trl
from opd_trl.cli.main import main
from opd_trl.diagnostics import RULES
from opd_trl.reports.summary import JUDGED_FROM
from tests.reports.made import HOSTILE, log_line, sample, session, warning, whole_run, write_run


def data_of(page: str) -> dict:
    """The JSON that the page's script draws."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_a_run_has_its_page_in_its_folder(tmp_path, report):
    folder = whole_run(tmp_path / "run", collapses=True)
    status, out, _ = report(folder)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == f"{folder.parent.name}/run: finished at step 100; 2 warnings"
    assert lines[-1] == f"Wrote {folder}/report.html"
    page = (folder / "report.html").read_text()
    for text in (
        "Finished at step 100.",
        "⚠ 2 warnings",
        "Qwen/Qwen3-1.7B",
        "the student (base)",
        "many_faces",
        "NVIDIA H200",
        "2 h 20 min",
        "Use loss_tail: renormalize with a larger loss_top_k",
        'href="#chart-repetition"',
        'id="chart-repetition"',
        "Set by hand: 2 fields",
        "5.23.0",
        "--privileged_context &#39;be kind&#39;",
    ):
        assert text in page


def test_the_parts_come_in_the_order_that_a_worried_reader_wants(tmp_path, report):
    folder = whole_run(tmp_path / "run")
    report(folder)
    page = (folder / "report.html").read_text()
    parts = re.findall(r'<section id="(\w+)"', page)
    assert parts == ["warnings", "samples", "curves", "cost", "values", "configuration", "versions"]


def test_what_changed_stands_at_the_top_in_words(tmp_path, report):
    figures = {"rewards/right/mean": 0.25, "completions/mean_length": 40.0, "completions/clipped_ratio": 0.5}
    lines = [log_line(step, **{ZERO: 2.0 - step / 10}, **figures) for step in range(1, 13)]
    folder = write_run(tmp_path / "run", lines=lines)
    _, out, _ = report(folder, "--json", tmp_path / "figures.json")
    assert out.splitlines()[1:-1] == [
        "  divergence 1.7 -> 1 nats per token",  # means of steps 1 to 5 and 8 to 12
        "  reward right 0.25 -> 0.25",
        "  length 40 -> 40 tokens",
        "  cut at the limit 50 % -> 50 %",
    ]
    assert "divergence 1.7 → 1 nats per token; reward right" in (folder / "report.html").read_text()
    (run,) = json.loads((tmp_path / "figures.json").read_text())["runs"]
    assert run["changes"][ZERO]["first"] == pytest.approx(1.7)
    assert run["changes"][ZERO]["last"] == pytest.approx(1.0)


@pytest.mark.parametrize(("count", "ends"), [(1, None), (2, (1, 2)), (3, (1, 3)), (5, (1.5, 4.5))])
def test_the_ends_of_a_short_run_do_not_overlap(tmp_path, report, count, ends):
    folder = write_run(tmp_path / "run", lines=[log_line(i, **{ZERO: float(i)}) for i in range(1, count + 1)])
    report(folder, "--json", tmp_path / "figures.json")
    (run,) = json.loads((tmp_path / "figures.json").read_text())["runs"]
    found = run["changes"].get(ZERO)
    assert (found and (found["first"], found["last"])) == ends


def test_the_page_asks_the_network_for_nothing(tmp_path, report):
    folder = whole_run(tmp_path / "run")
    report(folder)
    page = (folder / "report.html").read_text()
    assert "default-src 'none'" in page
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)[^\s'\"]+", page) == []
    assert not re.search(r"<(link|img|iframe)[^>]+(src|href)=(?!\"data:,\")", page)


def test_several_runs_share_the_charts_and_a_table_of_what_differs(tmp_path, report, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole_run(tmp_path / "a" / "opd", collapses=True)
    changed = session(config={"learning_rate": 1e-6, "loss_top_k": 5, "seed": 42}, method=None)
    whole_run(tmp_path / "b" / "opd", sessions=[changed])
    status, out, _ = report("a/opd", "b/opd", "--json", "figures.json")
    assert status == 0
    assert [line for line in out.splitlines() if not line.startswith("  ")][:2] == [
        "a/opd: finished at step 100; 2 warnings",
        "b/opd: finished at step 100; no warnings",
    ]
    page = (tmp_path / "report.html").read_text()
    assert [run["name"] for run in data_of(page)["runs"]] == ["a/opd", "b/opd"]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["different_settings"] == {
        "method": ["many_faces", None],
        "learning_rate": [2e-6, 1e-6],
        "output_dir": ["runs/opsd", None],
        "bf16": [True, None],
    }
    assert "What differs between the runs" in page


def test_json_holds_state_warnings_last_values_and_cost(tmp_path, report):
    folder = whole_run(tmp_path / "run", collapses=True, sessions=[session(outcome="stopped by the monitor")])
    report(folder, "--json", tmp_path / "deep" / "figures.json")
    (run,) = json.loads((tmp_path / "deep" / "figures.json").read_text())["runs"]
    assert (run["state"], run["step"], run["max_steps"]) == ("stopped by the monitor", 100, 100)
    assert [line["rule"] for line in run["warnings"]] == ["repetition", "support_mass"]
    assert run["last"]["completions/repetition"]["step"] == 100
    assert run["last"]["completions/repetition"]["value"] == pytest.approx(
        log_line(100, collapses=True)["completions/repetition"]
    )
    assert run["cost"]["phases"]["rest"]["seconds"] == pytest.approx(0.4)


def test_png_draws_each_chart(tmp_path, report):
    drawn = ("step", "session", "loss", "completions/repetition", "learning_rate", "eval_rule")
    rows = [{name: line[name] for name in drawn if name in line} for line in map(log_line, range(1, 51))]
    folder = write_run(tmp_path / "run", lines=rows, warnings=[warning(20)])
    status, out, _ = report(folder, "--png", tmp_path / "png")
    assert status == 0
    drawn = {path.stem: imread(path) for path in (tmp_path / "png").iterdir()}
    assert drawn.keys() == {"loss", "repetition", "learning_rate", "eval-eval_rule"}
    assert all(picture.std() > 0.03 for picture in drawn.values())
    assert " more" in out.splitlines()[-1]


def test_every_file_of_the_page_is_installed():
    root = Path(opd_trl.__file__).parents[1]
    if not (root / "setup.cfg").is_file():
        pytest.skip("not a checkout")
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    assert config["options.package_data"]["opd_trl.reports"].split() == ["assets/*"]
    assert all(path.is_file() for path in (root / "opd_trl/reports/assets").iterdir())


def test_a_run_that_has_just_started_has_a_page(tmp_path, report):
    folder = write_run(tmp_path / "run", sessions=[session(ended=None, outcome=None, config={}, differs={})])
    status, out, _ = report(folder, "--png", tmp_path / "png")
    page = (folder / "report.html").read_text()
    assert status == 0
    assert "no line logged" in out
    for text in ("No line is logged yet.", "No samples were logged.", "No step_time is logged yet."):
        assert text in page


def test_what_could_not_be_read_stands_on_the_page(tmp_path, report):
    report(write_run(tmp_path / "run", lines=[log_line(1)], tail='broken\n{"step": 2, "sess'))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 line of log.jsonl could not be read and is left out." in page
    assert "The last line of log.jsonl is half written and left out." in page


def test_figures_that_were_not_finite_stand_among_the_warnings(tmp_path, report):
    rows = [log_line(1), log_line(2, grad_norm=None, not_finite=["grad_norm"]), log_line(3)]
    report(write_run(tmp_path / "run", lines=rows))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "grad_norm was NaN or infinite" in page
    assert data_of(page)["runs"][0]["notFinite"] == {"grad_norm": [2]}


def test_a_warning_about_a_difference_stands_in_the_curve_of_its_first_figure(tmp_path, report):
    told = warning(2, figure="distillation/log_ratio_repeated - distillation/log_ratio_other", value=None)
    folder = write_run(tmp_path / "run", lines=[log_line(i) for i in range(1, 5)], warnings=[told])
    report(folder)
    page = (folder / "report.html").read_text()
    assert 'href="#chart-repeated">see the curve' in page
    assert data_of(page)["runs"][0]["warnings"][0]["figure"] == "distillation/log_ratio_repeated"


def test_a_figure_that_was_not_finite_stands_once_where_the_monitor_has_said_it(tmp_path, report):
    rows = [log_line(1, loss=None, not_finite=["loss"])]
    folder = write_run(tmp_path / "run", lines=rows, warnings=[warning(1, rule="loss_not_finite", figure="loss")])
    report(folder)
    assert (folder / "report.html").read_text().count('<article class="alarm">') == 1


def test_a_warning_of_steps_that_were_run_again_is_set_apart_and_not_counted(tmp_path, report):
    parts = [session(ended=None, outcome=None), session(first_step=2)]
    rows = [log_line(1), log_line(5), log_line(3, session=1)]
    folder = write_run(tmp_path / "run", sessions=parts, lines=rows, warnings=[warning(5)])
    _, out, _ = report(folder)
    page = (folder / "report.html").read_text()
    assert "; too short to judge: 2 log lines" in out
    assert "these steps were run again since" in page
    assert data_of(page)["runs"][0]["warnings"] == []


def test_hostile_text_is_escaped_wherever_it_stands(tmp_path, report):
    evil = "".join(HOSTILE) + "\u2028\ud800"
    told = session(
        student=evil,
        teachers={evil: evil},
        method=evil,
        device=evil,
        argv=[evil],
        config={evil: evil},
        differs={evil: {"value": evil, "default": evil, "source": evil}},
        versions={evil: evil},
    )
    rows = {
        "lines": [{"step": 1, "session": 0, evil: 1.0, "loss": 1.0, "not_finite": [evil]}],
        "samples": [sample(1, tokens=HOSTILE, prompt=evil, teacher_prompt=evil, teacher=evil)],
        "warnings": [warning(1, rule=evil, figure=evil, message=evil)],
    }
    status, _, _ = report(write_run(tmp_path / "run", sessions=[told], **rows))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert status == 0
    assert "alert(1)</script>" not in page
    assert "<img" not in page
    assert "{{7*7}}" in page
    assert page.count("</script>") == 2
    assert data_of(page)["runs"][0]["samples"][0]["tokens"] == HOSTILE


def test_a_long_run_makes_a_small_page_in_seconds(tmp_path, report):
    log = tmp_path / "run" / "run_log"
    write_run(tmp_path / "run", samples=[sample(i * 500, tokens=["token "] * 2_000) for i in range(200)])
    metrics = json.dumps(dict(list(log_line(100).items())[4:16]))
    with (log / "log.jsonl").open("w") as file:
        file.writelines(f'{{"step": {i}, "session": 0, "seconds": {i}, {metrics[1:]}\n' for i in range(1, 100_001))
    start = time.perf_counter()
    status, _, _ = report(tmp_path / "run")
    assert status == 0
    assert (tmp_path / "run" / "report.html").stat().st_size < 5e6
    assert time.perf_counter() - start < 60


def test_a_folder_that_is_not_there_is_refused(tmp_path, refused):
    assert "does not exist" in refused(tmp_path / "nothing")


def test_a_folder_without_a_run_log_is_refused_with_what_was_found(tmp_path, refused):
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "config.json").write_text("{}")
    error = refused(tmp_path)
    assert "Found: checkpoint-10/, config.json." in error
    assert "`monitor: true`" in error


def test_a_folder_of_runs_is_refused_with_their_names(tmp_path, refused):
    whole_run(tmp_path / "runs" / "one", steps=2)
    assert f"These are runs: {tmp_path}/runs/one." in refused(tmp_path / "runs")


def test_a_file_and_a_run_given_twice_are_refused(tmp_path, refused):
    folder = whole_run(tmp_path / "run", steps=2)
    assert "is a file" in refused(folder / "run_log" / "log.jsonl")
    assert "is given twice" in refused(folder, folder / "run_log")
    assert "is a folder" in refused(folder, "--output", tmp_path)


def test_one_bad_run_of_two_writes_nothing(tmp_path, refused):
    whole_run(tmp_path / "good", steps=2)
    assert "does not exist" in refused(tmp_path / "good", tmp_path / "bad", "--json", tmp_path / "x.json")


def test_a_newer_format_is_refused(tmp_path, refused):
    folder = whole_run(tmp_path / "run", steps=2)
    (folder / "run_log" / "run.json").write_text('{"format": 9, "sessions": [{}]}')
    assert "has format 9" in refused(folder)


def test_the_help_teaches_with_three_examples_and_does_not_import_torch(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["report", "--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert text.count("\n  opd-trl report ") == 3
    assert text.count("default:") == 3
    code = "import sys; from opd_trl.reports import page; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


ZERO = "distillation/per_token_divergence"
NOTHING = {"rule": "nothing_learned", "figure": ZERO, "threshold": 1e-6}
SHORT = "too short to judge: {}, and the rules look at 5"


@pytest.mark.parametrize(
    ("lines", "told", "verdict"),
    [
        ([log_line(i, **{ZERO: 0.0}) for i in range(1, 9)], warning(5, **NOTHING), "nothing learned"),
        # No token was compared.
        ([log_line(i, **{ZERO: None}) for i in range(1, 9)], warning(5, **NOTHING), "nothing learned"),
        # It learned first, and nothing later: that is a warning.
        ([log_line(1), *(log_line(i, **{ZERO: 0.0}) for i in range(2, 9))], warning(6, **NOTHING), "1 warning"),
        ([log_line(i) for i in range(1, 5)], None, SHORT.format("4 log lines")),
        ([log_line(1)], None, SHORT.format("1 log line")),
        ([log_line(i) for i in range(1, 6)], None, "no warnings"),
        ([*map(log_line, range(1, 6)), log_line(6, loss=None, not_finite=["loss"])], None, "NaN or infinite: loss"),
    ],
)
def test_the_verdict_stands_at_the_top_of_the_page_and_in_the_terminal(tmp_path, report, lines, told, verdict):
    folder = write_run(tmp_path / "run", lines=lines, warnings=[told] if told else [])
    _, out, _ = report(folder, "--json", tmp_path / "figures.json")
    assert out.splitlines()[0].endswith(f"; {verdict}")
    assert json.loads((tmp_path / "figures.json").read_text())["runs"][0]["verdict"] == verdict
    headline = (folder / "report.html").read_text().partition('<p class="headline">')[2].partition("</p>")[0]
    assert verdict in headline
    assert ("badge good" in headline.partition("</span>")[2]) == (verdict == "no warnings")


def test_the_report_judges_a_run_from_as_many_lines_as_the_rules():
    assert {rule.window for rule in RULES if rule.name == "nothing_learned"} == {JUDGED_FROM}
