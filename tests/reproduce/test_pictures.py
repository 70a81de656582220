"""Pictures of made-up lines: what is drawn is what the lines hold."""

import matplotlib.image
import pytest

from opd_trl.diagnostics.plots import new_figure
from opd_trl.reproduce import pictures
from opd_trl.reproduce.confusion import Results
from opd_trl.reproduce.pictures import write_report

from .lines import lines, settings


def test_a_study_leaves_a_report_and_a_picture_of_each_claim_and_of_the_trials(tmp_path):
    written = write_report(settings(), lines(), tmp_path / "home")
    assert [path.name for path in written] == ["report.md", "first.png", "trials.png"]
    for path in written[1:]:
        image = matplotlib.image.imread(path)
        assert image.shape[0] > 300
        assert image.std() > 0.01


def test_a_claim_without_a_result_has_no_picture(tmp_path):
    assert [path.name for path in write_report(settings(), [], tmp_path)] == ["report.md"]


def test_every_arm_has_its_seeds_their_mean_and_lines_for_student_and_teacher():
    axes, own = new_figure(4, 4).subplots(), settings()
    pictures.draw_outcomes(axes, [own.arms["good"], own.arms["bad"]], Results.of(lines()))
    points = [tuple(line.get_xdata()) for line in axes.lines]
    assert (0.8, 0.8, 0.65) in points
    assert [x[0] for x in points].count(pytest.approx(0.5)) == 2
    assert [x[0] for x in points].count(pytest.approx(0.9)) == 2
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Good", "Bad"]


def test_a_curve_is_the_mean_over_seeds_with_their_range():
    axes, own = new_figure(4, 4).subplots(), settings()
    pictures.draw_curves(axes, [own.arms["good"]], Results.of(lines()), "entropy")
    assert axes.lines[0].get_ydata().tolist() == [2.0, 2.0]
    low, high = axes.collections[0].get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == (1.0, 3.0)


def test_the_resting_point_of_the_plain_form_is_marked():
    axes, own = new_figure(4, 4).subplots(), settings()
    pictures.draw_picks(axes, [own.arms["pick"]], Results.of(lines()))
    assert axes.lines[-1].get_ydata()[0] == pytest.approx(0.2575)
