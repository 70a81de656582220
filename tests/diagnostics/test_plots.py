from matplotlib.image import imread

from opd_trl.diagnostics import DISTILLATION_PANELS, Panel, plot_run


def test_a_picture_of_a_run_is_drawn_with_the_metrics_that_are_there(tmp_path):
    history = [{"step": i, "distillation/per_token_divergence": 1 / (i + 1), "other": None} for i in range(5)]
    panels = [Panel("nothing logged", {"missing": "missing"}), *DISTILLATION_PANELS]
    path = plot_run(history, panels, tmp_path / "new" / "curves.png", title="a run")
    pixels = imread(path)
    assert pixels.shape[1] > 1000
    assert pixels.std() > 0.05  # not blank
