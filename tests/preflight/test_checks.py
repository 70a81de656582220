"""The list of checks: all of them are in the help and on the card, and nothing that one finds is lost."""

import io
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from opd_trl.cli.preflight import help_text, show
from opd_trl.preflight import checks, ranking
from opd_trl.preflight.checks import CHECKS, Check
from opd_trl.preflight.findings import Finding
from opd_trl.preflight.inspection import refusal, report
from opd_trl.scripts.consoles import plain_console


def card(figures):
    """What is printed of a pre-flight, one space between words."""
    console = plain_console(file=io.StringIO(), width=200)
    show(figures, console)
    return " ".join(console.file.getvalue().split())


def found_in(section):
    return Finding("a figure", "not run", "", f"Said of {section}.", section=section)


@pytest.fixture
def scratch(monkeypatch):
    """A check that a test adds to the others: `scratch(run=..., table=...)`."""

    def add(**functions):
        module = ModuleType("opd_trl.preflight.scratch")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        check = Check("scratch", title="Scratched", about="does it itch?", module="scratch")
        monkeypatch.setattr(checks, "CHECKS", (*CHECKS, check))
        return check

    return add


def test_every_check_has_a_name_of_its_own_and_stands_in_the_help():
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert {check.section or check.name for check in CHECKS} <= {check.name for check in CHECKS}
    printed = " ".join(help_text().split())
    for check in CHECKS:
        assert f"{check.name} {check.about}" in printed
    assert max(map(len, help_text().splitlines())) <= 119


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_check_has_a_title_that_the_card_prints_above_its_findings(check):
    printed = card(report([found_in(check.name)], {}, completions=0))
    assert f"{check.title} not run a figure Said of {check.name}." in printed
    assert not [other.title for other in CHECKS if other is not check and f" {other.title} " in printed]


def test_a_finding_of_a_section_that_no_check_has_is_printed():
    printed = card(report([found_in("loss"), found_in("made up")], {}, completions=0))
    assert "made up not run a figure Said of made up." in printed
    assert "Said of loss." in printed


def test_a_trainer_that_refuses_is_printed_with_its_reason():
    figures = refusal(ValueError("no teacher [at all]"))
    assert figures["verdict"] == "stop"
    assert "Templates stop the trainer refuses no teacher [at all]" in card(figures)


def test_a_ranking_that_is_refused_is_printed(run, recipe, monkeypatch, teacher_path):
    def refuse(preflight, path):
        raise ValueError("No teacher can be ranked today.")

    monkeypatch.setattr(ranking, "figures_of", refuse)
    _, printed, figures = run("preflight", "--config", recipe(), "--prompts", "2", "--teacher", teacher_path)
    assert "Teachers, the best overlap first not run ranking No teacher can be ranked today." in printed
    assert figures["findings"][-1]["section"] == "ranking"
    assert "ranking" not in figures


def test_a_check_that_is_added_to_the_list_is_run_and_printed_and_stands_in_the_help(run, recipe, scratch):
    def itch(preflight):
        preflight.details["itch"] = len(preflight.rollouts)
        return [Finding("itching", "stop", "7 times", "It itches.", "below 3", "scratch: true", 7.0)]

    scratch(run=itch, table=lambda figures: f"itched in {figures['itch']} batches")
    status, printed, figures = run("preflight", "--config", recipe(), "--prompts", "2")
    assert status == 1
    assert figures["itch"] == 1
    assert figures["findings"][-1] == {
        "section": "scratch",
        "name": "itching",
        "verdict": "stop",
        "figure": "7 times",
        "sentence": "It itches.",
        "threshold": "below 3",
        "change": "scratch: true",
        "value": 7.0,
    }
    assert "Scratched itched in 1 batches stop itching: 7 times It itches. below 3" in printed
    assert "stop itching: scratch: true" in printed
    assert "scratch does it itch?" in " ".join(help_text().split())


def test_what_a_check_cannot_do_is_a_finding_under_its_own_name(scratch):
    def fail(preflight):
        raise ValueError("There is no skin.")

    (finding,) = scratch(run=fail).run(SimpleNamespace())
    assert finding == Finding("scratch", "not run", "", "There is no skin.", section="scratch")


STATE = SimpleNamespace(trainer=SimpleNamespace(args=None))


def test_a_check_sets_the_section_of_what_its_file_finds(scratch):
    check = scratch(run=lambda preflight: [Finding("itching", "ok", "", "It does not.")])
    assert [x.section for x in check.run(STATE)] == ["scratch"]
    joins = Check("scratch", title="", about="", module="scratch", section="loss")
    assert [x.section for x in joins.run(STATE)] == ["loss"]
    assert check.table({}) is None


def test_the_list_and_the_help_load_no_torch():
    code = (
        "import sys, opd_trl.preflight.checks, opd_trl.cli.preflight as command, opd_trl.cli.verify_loss\n"
        "command.help_text()\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
