"""What is read of a run log, whole or damaged."""

import json
from datetime import UTC, datetime

import pytest

from opd_trl.reports.reading import RunLogError, read_run
from opd_trl.reports.runs import OPEN
from opd_trl.reports.summary import headline
from tests.reports.made import log_line, sample, session, warning, whole_run, write_run


OPEN_END = {"ended": None, "outcome": None}


def lines(steps, *, of=0, **changes):
    """Short log lines of a session, a step every 2 seconds."""
    return [{"step": step, "session": of, "seconds": 2.0 * step, "loss": float(step), **changes} for step in steps]


def test_a_whole_run_is_read_with_all_that_it_logged(tmp_path):
    run = read_run(whole_run(tmp_path / "run", collapses=True))
    assert (run.state, run.step, run.lines, run.seconds) == ("finished", 100, 100, 2 * 3600 + 20 * 60)
    assert len(run.samples) == 22
    assert [line["rule"] for line in run.warnings] == ["repetition", "support_mass"]
    assert run.series["loss"].steps.tolist() == list(range(1, 101))
    assert run.series["eval_rule"].steps.tolist() == [25, 50, 75, 100]
    assert (run.unread.broken, run.unread.half_written) == ({}, [])


def test_the_run_log_itself_can_be_named(tmp_path):
    folder = whole_run(tmp_path / "run", steps=3)
    assert read_run(folder / "run_log").folder == folder


def test_a_half_written_last_line_is_left_out_and_counted(tmp_path):
    folder = write_run(tmp_path / "run", lines=lines([1, 2]), tail='{"step": 3, "session": 0, "loss": 0.')
    run = read_run(folder)
    assert run.series["loss"].steps.tolist() == [1, 2]
    assert run.unread.half_written == ["log.jsonl"]
    assert run.unread.broken == {}


def test_a_last_line_without_an_end_is_left_out_though_it_is_json(tmp_path):
    folder = write_run(tmp_path / "run", lines=lines([1]), tail='{"step": 2, "session": 0, "loss": 12')
    (folder / "run_log" / "log.jsonl").open("a").write("3}")
    assert read_run(folder).series["loss"].steps.tolist() == [1]


@pytest.mark.parametrize("broken", ["{", "[1]", "null", '{"loss": 1}', '{"step": "x"}', '{"step": -1}', "\xff\xfe"])
def test_a_broken_line_in_the_middle_is_left_out_and_counted(tmp_path, broken):
    folder = write_run(tmp_path / "run", lines=lines([1]), tail=f"{broken}\n\n" + json.dumps(lines([2])[0]) + "\n")
    run = read_run(folder)
    assert run.series["loss"].steps.tolist() == [1, 2]
    assert run.unread.broken == {"log.jsonl": 1}


def test_nulls_and_texts_are_no_values_and_non_finite_ones_are_kept_as_steps(tmp_path):
    rows = lines([1, 2, 3])
    rows[1] |= {"loss": None, "not_finite": ["loss"], "note": "a text", "flag": True}
    run = read_run(write_run(tmp_path / "run", lines=rows))
    assert run.series.keys() == {"loss"}
    assert run.series["loss"].steps.tolist() == [1, 3]
    assert run.not_finite == {"loss": [2]}


def test_a_resumed_session_wins_from_its_first_step_on(tmp_path):
    parts = [session(**OPEN_END), session(first_step=4, **OPEN_END), session(first_step=6)]
    rows = [*lines(range(1, 8)), *lines(range(5, 9), of=1, loss=-1.0), *lines(range(7, 10), of=2, loss=-2.0)]
    told = {"samples": [sample(6), sample(4), sample(6, session=1)], "warnings": [warning(7), warning(3)]}
    run = read_run(write_run(tmp_path / "run", sessions=parts, lines=rows, **told))
    assert run.series["loss"].values.tolist() == [1, 2, 3, 4, -1, -1, -2, -2, -2]
    assert [(line["step"], line["session"]) for line in run.samples] == [(4, 0), (6, 1)]
    assert [line["superseded"] for line in run.warnings] == [True, False]
    assert (run.step, run.resumed_at) == (9, [4, 6])


def test_steps_that_a_resumed_session_has_not_reached_again_are_gone(tmp_path):
    parts = [session(**OPEN_END), session(first_step=4, **OPEN_END)]
    rows = [*lines(range(1, 8), not_finite=["grad_norm"]), *lines([5], of=1, loss=-1.0)]
    run = read_run(write_run(tmp_path / "run", sessions=parts, lines=rows))
    assert run.series["loss"].values.tolist() == [1, 2, 3, 4, -1]
    assert run.not_finite == {"grad_norm": [1, 2, 3, 4]}
    assert run.step == 5


def test_a_later_session_without_a_line_replaces_nothing(tmp_path):
    parts = [session(**OPEN_END), session(**OPEN_END)]
    run = read_run(write_run(tmp_path / "run", sessions=parts, lines=lines(range(1, 5))))
    assert (run.step, run.state) == (4, OPEN)
    assert run.series["loss"].values.tolist() == [1, 2, 3, 4]


def test_the_wall_time_adds_sessions_and_counts_one_without_an_end_to_its_last_line(tmp_path):
    parts = [session(**OPEN_END), session(first_step=4)]
    run = read_run(write_run(tmp_path / "run", sessions=parts, lines=[*lines([4]), *lines([5], of=1)]))
    assert run.seconds == 8 + 140 * 60


def test_metrics_of_two_lines_of_a_step_are_put_together(tmp_path):
    run = read_run(write_run(tmp_path / "run", lines=[*lines([1]), {"step": 1, "session": 0, "eval_loss": 3.0}]))
    assert run.series["eval_loss"].values.tolist() == [3.0]
    assert run.series["loss"].values.tolist() == [1.0]


def test_a_run_without_an_end_says_how_old_its_last_line_is(tmp_path):
    folder = write_run(tmp_path / "run", sessions=[session(**OPEN_END)], lines=lines(range(1, 31)))
    now = datetime(2026, 11, 22, 10, 4, 30, tzinfo=UTC)
    expected = "no end recorded: in progress or crashed; last line 3 min ago, one came every 2 s"
    assert headline(read_run(folder), now) == expected


def test_a_run_that_has_logged_nothing_says_so(tmp_path):
    run = read_run(write_run(tmp_path / "run", sessions=[session(**OPEN_END)]))
    assert headline(run, datetime.now(UTC)).startswith("no end recorded and no line logged")
    assert (run.step, run.lines) == (0, 0)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ('{"format": 2, "sessions": [{}]}', "has format 2; this opd-trl reads formats up to 1"),
        ('{"format": 1, "sessions": []}', "lists no sessions"),
        ('{"format": 1', "is not the header of a run log"),
        ('{"sessions": [{}]}', "is not the header of a run log"),
    ],
)
def test_a_header_that_cannot_be_read_is_refused(tmp_path, header, says):
    folder = whole_run(tmp_path / "run", steps=2)
    (folder / "run_log" / "run.json").write_text(header)
    with pytest.raises(RunLogError, match=says):
        read_run(folder)


def test_a_line_of_an_unknown_session_is_kept(tmp_path):
    run = read_run(write_run(tmp_path / "run", lines=[log_line(1, session=7)]))
    assert run.series["loss"].steps.tolist() == [1]


@pytest.mark.attack("data", "a forged run log: 400 digits, endless depth, steps of other types", "passed over")
@pytest.mark.parametrize(
    "line",
    [
        '{"step": 2, "session": 0, "loss": ' + "9" * 400 + "}",
        '{"step": 2, "session": 0, "loss": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"step": ' + "9" * 400 + ', "session": 0, "loss": 1}',
        '{"step": true, "session": 0, "loss": 1}',
        '{"step": 2, "session": [], "loss": 1}',
        '{"step": 2, "session": 0, "seconds": ' + "9" * 400 + "}",
    ],
)
def test_a_forged_line_ends_no_report(tmp_path, line):
    folder = write_run(tmp_path / "run", lines=lines([1]), tail=line + "\n")
    assert read_run(folder).series["loss"].steps.tolist() == [1]


@pytest.mark.attack("data", "a forged run log: sessions of other types, endless depth", "one line, the file named")
@pytest.mark.parametrize("first", [[1], "x", 10**400, -1, {"a": 1}, "deep"])
def test_a_forged_header_is_named(tmp_path, first):
    folder = write_run(tmp_path / "run", lines=lines([1]))
    header = json.dumps({"format": 1, "sessions": [session(first_step=first)]})
    (folder / "run_log" / "run.json").write_text(header.replace('"deep"', "[" * 5000 + "]" * 5000))
    with pytest.raises(RunLogError, match=r"run\.json"):
        read_run(folder)
