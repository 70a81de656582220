"""Which chart takes a metric, and how much of it is drawn."""

import numpy as np
import pytest
from matplotlib.image import imread

from opd_trl.diagnostics.plots import COLOURS, Curve, Panel, plot_curves
from opd_trl.reports.charts import SECTIONS, drawn_sections
from opd_trl.reports.page_data import BUDGET, MAX_TOKENS, curves, full_colour, page_samples, size, thinned
from opd_trl.reports.reading import read_run
from opd_trl.reports.runs import Series
from opd_trl.reports.summary import cost
from tests.reports.made import log_line, sample, whole_run, write_run


def placed(*names: str) -> dict[str, str]:
    """Metric -> key of its chart."""
    return {name: drawn.chart.key for _, charts in drawn_sections(names) for drawn in charts for name in drawn.metrics}


def test_every_metric_of_the_contract_has_a_chart_of_its_own_kind():
    logged = log_line(25)
    for name in ("step", "session", "seconds", "epoch"):
        del logged[name]
    found = placed(*logged)
    assert found.keys() == logged.keys()
    assert [name for name, key in found.items() if key.startswith("other")] == []
    assert found["eval_rule"] == "eval-eval_rule"
    assert found["distillation/divergence_q4"] == "position"


def test_metrics_of_teachers_and_rewards_join_the_chart_of_their_kind():
    found = placed("distillation/per_token_divergence/math", "rewards/format/mean", "rewards/format/std", "reward_x")
    assert list(found.values()) == ["divergence", "reward", "reward_std", "reward_other"]
    (_, charts), *_ = drawn_sections(["distillation/per_token_divergence/math"])
    assert charts[0].metrics == {"distillation/per_token_divergence/math": "math"}


def test_unknown_metrics_have_charts_under_other_which_is_folded():
    section, charts = drawn_sections(["mine/a", "loss", "train_runtime", "epoch"])[-1]
    assert (section.title, section.folded) == ("Other metrics", True)
    assert [(drawn.chart.key, drawn.metrics) for drawn in charts] == [("other-mine-a", {"mine/a": "mine/a"})]


def test_charts_have_different_keys():
    keys = [chart.key for section in SECTIONS for chart in section.charts]
    assert len(keys) == len(set(keys))


def test_a_thinned_curve_keeps_the_mean_the_ends_and_a_peak_of_one_step():
    values = np.zeros(10_000)
    values[5_050] = 100.0
    thin = thinned(Series(np.arange(1, 10_001), values), points=100)
    assert len(thin["steps"]) == 100
    assert thin["steps"][-1] == 10_000
    assert thin["hi"].max() == 100.0
    assert thin["v"].mean() == pytest.approx(values.mean())


def test_a_short_curve_is_drawn_as_it_is_and_curves_share_their_steps(tmp_path):
    run = read_run(whole_run(tmp_path / "run"))
    found = curves(run, set(run.series), points=1_000)
    assert found["steps"] == [list(range(1, 101)), [25, 50, 75, 100]]
    assert "hi" not in found["series"]["loss"]


def test_the_cost_is_split_into_phases_and_a_rest(tmp_path):
    rows = [
        {"step": i, "session": 0, "step_time": 10.0 + i, "time/generation": 4.0, "time/teacher": 2.0} for i in (0, 2)
    ]
    found = cost(read_run(write_run(tmp_path / "run", lines=rows)))
    assert found["seconds_per_step"] == 11
    assert {name: part["seconds"] for name, part in found["phases"].items()} == {
        "generation": 4,
        "teacher": 2,
        "rest": 5,
    }
    assert sum(part["share"] for part in found["phases"].values()) == pytest.approx(1)


def test_a_run_without_step_times_has_no_cost(tmp_path):
    assert cost(read_run(write_run(tmp_path / "run", lines=[{"step": 1, "session": 0, "loss": 1.0}]))) is None


def test_a_long_completion_keeps_its_beginning_its_end_and_the_mean_of_all():
    row = sample(1, tokens=[f"t{i}" for i in range(2_000)], divergence=[1.0] * 1_000 + [3.0] * 1_000, log_ratio=None)
    ((entry,),) = page_samples([[row]])
    assert len(entry["tokens"]) == len(entry["d"]) == len(entry["r"]) == MAX_TOKENS
    assert (entry["tokens"][0], entry["tokens"][-1]) == ("t0", "t1999")
    assert entry["cut"] == [500, 1_300]
    assert (entry["mean"], entry["counted"], entry["count"]) == (2.0, 2_000, 2_000)
    assert set(entry["r"]) == {None}


def test_samples_of_a_long_run_stay_within_the_budget_with_the_first_and_the_last_step():
    rows = [sample(step, tokens=["word "] * 600) for step in range(0, 1_000, 10) for _ in range(2)]
    (kept,) = page_samples([rows])
    assert sum(map(size, kept)) <= BUDGET
    steps = sorted({entry["step"] for entry in kept})
    assert (steps[0], steps[-1]) == (0, 990)
    assert len(steps) > 50
    assert np.diff(steps).max() <= 4 * np.diff(steps).min()


def test_samples_without_tokens_are_left_out_and_missing_figures_are_none():
    row = {"step": 1, "session": 0, "tokens": ["a", "b"], "divergence": [0.5]}
    ((entry,),) = page_samples([[{"step": 1, "session": 0, "tokens": []}, row]])
    assert (entry["d"], entry["r"], entry["teacher_prompt"]) == ([0.5, None], [None, None], None)


def test_a_picture_has_a_colour_for_each_run_and_a_line_for_a_warning(tmp_path):
    curves = [Curve([1, 2, 3], [i + 0.1, i + 0.2, i + 0.3], "loss", run) for i, run in enumerate("ab")]
    path = plot_curves(curves, Panel("loss", {}), tmp_path / "new" / "loss.png", marks=[2])
    pixels = {tuple(round(255 * part) for part in colour[:3]) for row in imread(path) for colour in row.tolist()}
    wanted = [*COLOURS[:2], "#b00020"]
    assert {tuple(bytes.fromhex(colour[1:])) for colour in wanted} <= pixels


def test_the_full_colour_is_one_for_all_runs_and_no_outlier():
    rows = [sample(1, tokens=["x"] * 1_000, divergence=[1.0] * 999 + [500.0]), sample(2, divergence=[0.1] * 24)]
    assert full_colour(page_samples([[row] for row in rows]), "d") == 1.0
    assert full_colour([[]], "d") == 1.0
