"""Which metrics share a chart, which charts share a section, and how each is read: `assets/charts.yaml`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Chart:
    """A chart of the page: which metrics it draws, and how it is read. The fields are explained in `charts.yaml`."""

    key: str
    title: str
    metrics: dict[str, str]
    unit: str = ""
    hint: str = ""
    limits: Sequence[float | None] = (None, None)


@dataclass(frozen=True)
class Section:
    """Charts under a heading; `folded` ones are opened by the reader."""

    title: str
    charts: list[Chart]
    folded: bool = False


@dataclass(frozen=True)
class Drawn:
    """A chart with the metrics that a run has: log name -> label."""

    chart: Chart
    metrics: dict[str, str] = field(default_factory=dict)


FILE = Path(__file__).parent / "assets" / "charts.yaml"
SECTIONS = [
    Section(**section | {"charts": [Chart(**chart) for chart in section["charts"]]})
    for section in yaml.safe_load(FILE.read_text("utf-8"))
]
# What the Trainer logs once, at the end, or as a counter of its own.
NO_CURVES = ("epoch", "total_flos", "train_*")
# Sections in which every metric has a chart of its own: their scales have nothing in common.
ONE_EACH = ("eval", "other")


def drawn_sections(names: Iterable[str]) -> list[tuple[Section, list[Drawn]]]:
    """Sections with the charts that runs with metrics `names` fill; every metric goes into the first that takes it.

    >>> [(section.title, [(d.chart.key, d.metrics) for d in charts])
    ...  for section, charts in drawn_sections(["loss", "rewards/format/mean", "mine"])]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('Rewards and policy', [('reward', {'rewards/format/mean': 'format'})]),
     ('Optimisation', [('loss', {'loss': 'loss'})]),
     ('Other metrics', [('other-mine', {'mine': 'mine'})])]
    """
    left = [name for name in sorted(names) if not any(fnmatchcase(name, pattern) for pattern in NO_CURVES)]
    found = []
    for section in SECTIONS:
        charts: list[Drawn] = []
        for chart in section.charts:
            metrics = shown_metrics(chart, left)
            left = [name for name in left if name not in metrics]
            charts += (
                one_chart_each(chart, metrics) if chart.key in ONE_EACH else [Drawn(chart, metrics)] if metrics else []
            )
        if charts:
            found.append((section, charts))
    return found


def shown_metrics(chart: Chart, names: list[str]) -> dict[str, str]:
    """Those of `names` that a chart shows, in its order, with their labels."""
    found: dict[str, str] = {}
    for pattern, label in chart.metrics.items():
        for name in names:
            if name not in found and (fnmatchcase(name, pattern) if "*" in pattern else name == pattern):
                found[name] = label or part_for(pattern, name) or name
    return found


def part_for(pattern: str, name: str) -> str:
    """The part of a name that the `*` of a pattern stands for; empty for a pattern without one.

    >>> part_for("rewards/*/mean", "rewards/right/mean"), part_for("loss", "loss")
    ('right', '')
    """
    before, _, after = pattern.partition("*")
    return name[len(before) : len(name) - len(after)]


def one_chart_each(chart: Chart, metrics: dict[str, str]) -> list[Drawn]:
    """A chart of its own for each metric, with its label as the title: scales that have nothing in common."""
    return [
        Drawn(Chart(f"{chart.key}-{slug(name)}", label, {name: label}), {name: label})
        for name, label in metrics.items()
    ]


def slug(name: str) -> str:
    """A name as links and files can hold it: letters, digits and `_`, all else a dash.

    >>> slug("eval_rewards/My Reward/mean")
    'eval_rewards-My-Reward-mean'
    """
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "-" for c in name)
