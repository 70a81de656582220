"""The charts as PNG files."""

from pathlib import Path
from typing import Any

from rich.progress import track

from ...reports.charts import drawn_sections
from ...reports.runs import Run


def write_pictures(runs: list[Run], figures: dict[str, Any], folder: Path) -> list[Path]:
    """Draw one PNG for each chart into `folder` and return their paths."""
    from ...diagnostics.plots import Curve, Panel, plot_curves

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
