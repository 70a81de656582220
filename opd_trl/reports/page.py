"""The page: template, style, script and data in one file that asks the network for nothing."""

import argparse
import base64
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from rich.progress import track

import opd_trl

from ..durable import atomically
from . import words
from .charts import Drawn, drawn_sections
from .page_data import page_data
from .reading import RunLogError, read_run
from .runs import Run
from .summary import figures


FILES = Path(__file__).parent / "assets"
SCRIPTS = ("format.js", "charts.js", "samples.js", "page.js")


def render(runs: list[Run], figures: dict[str, Any], now: datetime) -> str:
    """Return the page as HTML.

    Every text of the run is escaped: by the template, by the JSON (no `<` in it), and by the script, which writes text
    only as text. The policy in the head allows the page's own script, by its hash, and no request at all.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": words.duration,
        "number": words.number,
        "setting": words.setting,
        "teachers": words.teachers,
        "command_line": words.command_line,
    }
    sections = drawn_sections({name for run in runs for name in (*run.series, *run.not_finite)})
    data = page_data(runs, figures, sections)
    labels = {
        name: label_of(drawn, label)
        for _, charts in sections
        for drawn in charts
        for name, label in drawn.metrics.items()
    }
    last = {name for run in runs for name in run.series}
    script = "(() => {\n'use strict'\n" + "\n".join((FILES / name).read_text("utf-8") for name in SCRIPTS) + "\n})()"
    return environment.get_template("report.html.j2").render(
        figures=figures,
        runs=figures["runs"],
        several=len(runs) > 1,
        title="opd-trl report: " + ", ".join(run["name"] for run in figures["runs"]),
        now=now,
        sections=sections,
        charts_by_metric={
            name: drawn.chart.key for _, charts in sections for drawn in charts for name in drawn.metrics
        },
        labels=labels,
        order=[*labels, *sorted(set(last) - set(labels))],
        extremes=extremes(runs[0]) if len(runs) == 1 else {},
        has_samples=any(run["samples"] for run in data["runs"]),
        version=opd_trl.__version__,
        style=Markup((FILES / "report.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False),
    )


def label_of(drawn: Drawn, label: str) -> str:
    """A metric as tables name it: the title of its chart, and its label where the chart has several."""
    return drawn.chart.title if len(drawn.metrics) == 1 else f"{drawn.chart.title}: {label}"


def extremes(run: Run) -> dict[str, dict[str, float]]:
    """Metric -> first, last, lowest and highest value, and the steps of the last two."""
    return {
        name: {
            "first": float(series.values[0]),
            "last": float(series.values[-1]),
            "low": float(series.values.min()),
            "low_step": int(series.steps[series.values.argmin()]),
            "high": float(series.values.max()),
            "high_step": int(series.steps[series.values.argmax()]),
        }
        for name, series in run.series.items()
    }


PAGE = "report.html"


def write_report(args: argparse.Namespace, now: datetime | None = None) -> tuple[dict[str, Any], list[Path]]:
    """Read the runs and write what the command line asks for; return the figures, and the files written.

    `now` is the time of the report, that of the clock by default. Raises RunLogError, before anything is written,
    where a run cannot be read or is given twice.
    """
    now = now or datetime.now(UTC)
    runs = [read_run(folder) for folder in args.runs]
    twice = {str(run.folder) for run in runs if sum(other.folder == run.folder for other in runs) > 1}
    if twice:
        raise RunLogError(f"{', '.join(sorted(twice))} is given twice. Give each run once.")
    output = args.output or Path(os.path.commonpath([run.folder for run in runs])) / PAGE
    if output.is_dir():
        raise RunLogError(f"--output {output} is a folder. Name a file, such as {output / PAGE}.")
    found = figures(runs, now)
    page = render(runs, found, now)
    texts = {output: page} | ({} if args.json is None else {args.json: json.dumps(found, indent=2) + "\n"})
    for path, text in texts.items():
        with atomically(path) as file:
            file.write(text)
    written = list(texts)
    if args.png is not None:
        written += write_pictures(runs, found, args.png)
    return found, written


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
