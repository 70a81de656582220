"""The page: template, style, script and data in one file that asks the network for nothing."""

import argparse
import base64
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

import opd_trl

from ..durable import atomically
from . import words
from .charts import Drawn, Section, drawn_sections
from .drawing import curves, marks, points_per_curve, write_pictures
from .reading import RunLogError, read_run
from .runs import Run
from .samples import full_colour, page_samples
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


def page_data(runs: list[Run], figures: dict[str, Any], sections: list[tuple[Section, list[Drawn]]]) -> dict[str, Any]:
    """What the page's script draws: charts, and for each run its curves, marks, warnings and samples."""
    charts = [drawn for _, found in sections for drawn in found]
    names = {name for drawn in charts for name in drawn.metrics}
    samples = page_samples([run.samples for run in runs])
    points = points_per_curve(runs)
    return {
        "charts": [
            {
                "key": drawn.chart.key,
                "title": drawn.chart.title,
                "unit": drawn.chart.unit,
                "limits": list(drawn.chart.limits),
                "lines": [{"metric": name, "label": label} for name, label in drawn.metrics.items()],
            }
            for drawn in charts
        ],
        "fullColour": {key: full_colour(samples, key) for key in ("d", "r")},
        "runs": [
            {
                "name": known["name"],
                **curves(run, names, points),
                "notFinite": marks(run, names),
                "resumedAt": [step for step in run.resumed_at if step > 0],
                "warnings": [
                    {"step": line["step"], "figure": line["metric"], "rule": str(line["rule"])}
                    for line in known["warnings"]
                    if not line["superseded"]
                ],
                "samples": found,
            }
            for run, known, found in zip(runs, figures["runs"], samples, strict=True)
        ],
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
    output = args.output or (runs[0].folder if len(runs) == 1 else Path()) / PAGE
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
