"""What the page's script draws: curves, marks, warnings and samples, thinned out so that the page stays small."""

from typing import Any

import numpy as np

from .charts import Drawn, Section
from .reading import is_number
from .runs import Run, Series


# The curves of a page stay below this many values, about 2 MB; no curve has more points than a screen has columns.
MAX_VALUES, MAX_POINTS, MIN_POINTS = 250_000, 1_200, 150
MAX_MARKS = 100
# The samples of all runs stay below this many characters of JSON.
BUDGET = 1_800_000
MAX_TOKENS, LAST_TOKENS = 700, 200
MAX_TEXT = 12_000


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


def points_per_curve(runs: list[Run]) -> int:
    """How many points a curve may have, so that all of them stay below `MAX_VALUES`; a point takes three values."""
    curves = sum(len(run.series) for run in runs)
    return int(np.clip(MAX_VALUES // (3 * max(curves, 1)), MIN_POINTS, MAX_POINTS))


def curves(run: Run, names: set[str], points: int) -> dict[str, Any]:
    """The curves of a run: `steps`, a list of the different step axes, and `series`, metric -> axis and values.

    A curve with more than `points` is cut into so many pieces, each with its mean (`v`), its lowest and its highest
    value (`lo`, `hi`): a peak of one step stays in sight.
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


def page_samples(runs: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The samples of each run as the page holds them, below `BUDGET` together.

    Of a run with too many the steps are thinned out evenly; the first and the last stay.
    """
    share = BUDGET // max(len(runs), 1)
    return [within(share, [entry for line in lines if (entry := shortened(line))]) for lines in runs]


def within(budget: int, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of evenly chosen steps whose sizes stay below `budget`."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        by_step.setdefault(entry["step"], []).append(entry)
    steps, sizes = sorted(by_step), {step: sum(map(size, found)) for step, found in by_step.items()}
    keep = steps
    while len(keep) > 1 and (total := sum(sizes[step] for step in keep)) > budget:
        # What fits were all of one size, and at least one less than before.
        places = np.linspace(0, len(steps) - 1, max(1, min(len(keep) - 1, int(len(keep) * budget / total))))
        keep = [steps[i] for i in sorted(set(places.round().astype(int).tolist()))]
    return [entry for step in keep for entry in by_step[step]]


def size(entry: dict[str, Any]) -> int:
    """About how many characters of JSON an entry takes."""
    texts = [entry["prompt"], entry["teacher_prompt"] or "", *entry["tokens"]]
    numbers = 7 * len(entry["d"]) + 7 * len(entry["r"]) + 2 * len(entry["turn"] or [])
    return sum(len(text) + 3 for text in texts) + numbers + 100


def shortened(line: dict[str, Any]) -> dict[str, Any] | None:
    """A line as the page holds it, or None where it has no tokens.

    A long completion keeps its beginning and its end: `cut` is the place of the gap and its length. Means are of the
    whole completion.
    """
    tokens = line.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        return None
    divergence, log_ratio = (one_each(line.get(key), len(tokens)) for key in ("divergence", "log_ratio"))
    counted = [value for value in divergence if value is not None]
    first = MAX_TOKENS - LAST_TOKENS
    gap = len(tokens) - MAX_TOKENS

    def chosen(values: list[Any]) -> list[Any]:
        return values if gap <= 0 else values[:first] + values[-LAST_TOKENS:]

    return {
        "step": line["step"],
        "prompt": text(line.get("prompt")),
        "teacher_prompt": text(line["teacher_prompt"]) if line.get("teacher_prompt") else None,
        "teacher": text(line.get("teacher")),
        "count": len(tokens),
        "counted": len(counted),
        "mean": short(sum(counted) / len(counted)) if counted else None,
        "tokens": [text(token) for token in chosen(tokens)],
        "d": [short(value) for value in chosen(divergence)],
        "r": [short(value) for value in chosen(log_ratio)],
        "turn": chosen(one_each(line["turn"], len(tokens))) if "turn" in line else None,
        "cut": None if gap <= 0 else [first, gap],
    }


def one_each(values: Any, count: int) -> list[float | None]:
    """A number or None for each of `count` tokens.

    >>> one_each([0.5, None, "x"], 4)
    [0.5, None, None, None]
    """
    values = values[:count] if isinstance(values, list) else []
    return [value if is_number(value) else None for value in values] + [None] * (count - len(values))


def short(value: float | None, digits: int = 3) -> float | None:
    """A value rounded to so many significant digits, so that it is short in JSON; None stays None."""
    return None if value is None else float(f"{value:.{digits}g}")


def text(value: Any) -> str:
    """A text, its middle left out where it is very long."""
    value = value if isinstance(value, str) else "" if value is None else str(value)
    if len(value) <= MAX_TEXT:
        return value
    half, gone = MAX_TEXT // 2, len(value) - MAX_TEXT
    return f"{value[:half]}\n[... {gone:,} characters left out of this page ...]\n{value[-half:]}"


def full_colour(runs: list[list[dict[str, Any]]], key: str) -> float:
    """The magnitude at which a token has the full colour: the 98th percentile over all tokens, at least 0.5 nats.

    One scale for all steps and runs, so that a page turned to a later step is seen to pale.
    """
    values = [abs(value) for lines in runs for line in lines for value in line[key] if value is not None]
    return max(0.5, short(float(np.percentile(values, 98)), 2)) if values else 1.0
