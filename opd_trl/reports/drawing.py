"""Curves for the page: at most so many points each, as means with their range, in compact JSON."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from .charts import drawn_sections
from .runs import Run, Series


# The curves of a page stay below this many values, about 2 MB; no curve has more points than a screen has columns.
MAX_VALUES, MAX_POINTS, MIN_POINTS = 250_000, 1_200, 150
MAX_MARKS = 100


def points_per_curve(runs: list[Run]) -> int:
    """How many points a curve may have, so that all of them stay below `MAX_VALUES`; a point takes three values."""
    curves = sum(len(run.series) for run in runs)
    return int(np.clip(MAX_VALUES // (3 * max(curves, 1)), MIN_POINTS, MAX_POINTS))


def curves(run: Run, names: set[str], points: int) -> dict[str, Any]:
    """The curves of a run: `steps`, a list of the different step axes, and `series`, metric -> axis and values.

    Args:
        run: whose.
        names: metrics that are drawn.
        points: most of each curve. A longer one is cut into so many pieces, each with its mean (`v`), its lowest and
            its highest value (`lo`, `hi`): a peak of one step stays in sight.
    """
    axes: dict[tuple[int, ...], int] = {}
    series: dict[str, Any] = {}
    for name in sorted(names & run.series.keys()):
        thin = thinned(run.series[name], points)
        steps = tuple(thin.pop("steps").tolist())
        axis = axes.setdefault(steps, len(axes))
        series[name] = {"axis": axis, **{key: rounded(values) for key, values in thin.items()}}
        series[name]["last"] = rounded(run.series[name].values[-1:], digits=8)[0]
    return {"steps": [list(axis) for axis in axes], "series": series}


def thinned(series: Series, points: int) -> dict[str, np.ndarray]:
    """A curve as it is, or cut into `points` pieces with mean, lowest and highest value at the last step of each.

    >>> thin = thinned(Series(np.arange(4), np.array([1.0, 3.0, 5.0, 9.0])), points=2)
    >>> thin["steps"].tolist(), thin["v"].tolist(), thin["lo"].tolist(), thin["hi"].tolist()
    ([1, 3], [2.0, 7.0], [1.0, 5.0], [3.0, 9.0])
    """
    count = len(series.steps)
    if count <= points:
        return {"steps": series.steps, "v": series.values}
    starts = np.linspace(0, count, points, endpoint=False).astype(int)
    ends = np.append(starts[1:], count)
    return {
        "steps": series.steps[ends - 1],
        "v": np.add.reduceat(series.values, starts) / (ends - starts),
        "lo": np.minimum.reduceat(series.values, starts),
        "hi": np.maximum.reduceat(series.values, starts),
    }


def marks(run: Run, names: set[str]) -> dict[str, list[int]]:
    """Metric -> steps at which it was not finite, the first `MAX_MARKS` of them."""
    return {name: steps[:MAX_MARKS] for name, steps in run.not_finite.items() if name in names}


def rounded(values: np.ndarray, digits: int = 5) -> list[float]:
    """Values with so many significant digits, whole ones without a point: short in JSON.

    >>> rounded(np.array([0.123456789, 2.0, 1234567.0]))
    [0.12346, 2, 1234600]
    """
    short = (float(f"{value:.{digits}g}") for value in values.tolist())
    return [int(value) if value.is_integer() and abs(value) < 1e15 else value for value in short]


def write_pictures(runs: list[Run], figures: dict[str, Any], folder: Path) -> list[Path]:
    """Draw one PNG for each chart into `folder` and return their paths."""
    from ..diagnostics.plots import Curve, Panel, plot_curves

    names = [run["name"] for run in figures["runs"]]
    sections = drawn_sections({name for run in runs for name in run.series})
    charts = [drawn for _, found in sections for drawn in found]
    paths = []
    for drawn in track(charts, description="Drawing the PNGs", transient=True):
        curves = [
            Curve(run.series[metric].steps, run.series[metric].values, label, name if len(runs) > 1 else "")
            for run, name in zip(runs, names, strict=True)
            for metric, label in drawn.metrics.items()
            if metric in run.series
        ]
        warnings = [
            line["step"]
            for run in figures["runs"]
            for line in run["warnings"]
            if line["metric"] in drawn.metrics and not line["superseded"]
        ]
        chart = drawn.chart
        title = f"{chart.title} ({chart.unit})" if chart.unit else chart.title
        path = folder / f"{chart.key}.png"
        paths.append(plot_curves(curves, Panel(title, drawn.metrics), path, marks=warnings))
    return paths
