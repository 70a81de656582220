"""The study in the documentation: the page shows the lines that are kept here."""

import mechanisms
import pytest

from opd_trl.reproduce.settings import read_settings
from opd_trl.reproduce.study import all_jobs, key_of
from opd_trl.scripts.recipe_files import find_recipe
from tests.reproduce.lines import lines, settings

from .lines import written


def cells(table: str) -> list[list[str]]:
    """Of the rows below the head of a Markdown table."""
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.strip().splitlines()[2:]]


def test_every_step_of_the_study_is_kept_under_the_settings_of_the_recipe():
    own = read_settings(find_recipe("reproduce/mechanisms"))
    jobs = all_jobs(own, range(mechanisms.SEEDS), list(own.arms))
    assert [key_of(line) for line in mechanisms.read_lines(mechanisms.RESULTS)] == [job.key for job in jobs]


def test_the_page_shows_the_lines_that_are_kept_here():
    own = read_settings(find_recipe("reproduce/mechanisms"))
    assert written("evidence.md", "mechanisms") == mechanisms.text(own, mechanisms.read_lines(mechanisms.RESULTS)), (
        "python benchmarks/mechanisms.py --write docs/evidence.md --plot docs/images"
    )


def test_the_preflight_is_compared_before_and_after_its_rules_changed_on_seen_and_on_fresh_seeds(monkeypatch):
    monkeypatch.setattr(mechanisms, "SEEN", range(1))
    monkeypatch.setattr(mechanisms, "FRESH", range(1, 3))
    first = [line for line in lines() if line["kind"] == "forecast" and line["name"] == "bad"]
    text, _, by_finding = mechanisms.looks_text(settings(), lines(), first).partition("\nFailed of the doubted")
    assert cells(text) == [
        ["as it was", "0 to 0, seen", "1 of 1 (100%)", "1 of 1 (100%)", "1 of 1", "1 of 1"],
        ["as it was", "1 to 2, fresh", "2 of 2 (100%)", "2 of 2 (100%)", "2 of 2", "2 of 2"],
        ["as it is", "0 to 0, seen", "1 of 2 (50%)", "2 of 2 (100%)", "1 of 1", "1 of 1"],
        ["as it is", "1 to 2, fresh", "2 of 3 (67%)", "2 of 3 (67%)", "2 of 3", "2 of 2"],
    ]
    assert cells(by_finding.split("\n\n")[1]) == [["Top-K overlap", "1 of 1", "2 of 3"], ["gradient", "", "0 of 1"]]


def test_a_study_that_is_not_finished_is_not_kept(tmp_path):
    with pytest.raises(SystemExit, match=r"0 of .* steps\. Run opd-trl reproduce mechanisms again"):
        mechanisms.keep(tmp_path, read_settings(find_recipe("reproduce/mechanisms")))
