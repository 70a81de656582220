"""The figures of a report: what the page's tables and `--json` say of each run, and in what runs differ."""

import os
from collections.abc import Iterable
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .charts import part_for
from .runs import OPEN, Run
from .words import ago, change, duration


PHASES = {"time/generation": "generation", "time/teacher": "teacher", "time/student": "student"}
WHOLE, REST = "step_time", "rest"


def cost(run: Run) -> dict[str, Any] | None:
    """Seconds of a step by phase, means over all log lines, or None where the run has not logged `step_time`.

    Returns:
        `seconds_per_step`; `phases`, each with `seconds` of a step and `share`. The rest is what `step_time` has
        beyond the phases that were measured, never below 0.
    """
    if WHOLE not in run.series:
        return None
    whole = mean(run, WHOLE)
    phases = {label: mean(run, name) for name, label in PHASES.items() if name in run.series}
    phases[REST] = max(0.0, whole - sum(phases.values()))
    total = sum(phases.values())
    return {
        "seconds_per_step": whole,
        "phases": {
            label: {"seconds": seconds, "share": seconds / total if total else 0.0}
            for label, seconds in phases.items()
        },
    }


def mean(run: Run, metric: str) -> float:
    """Mean of a metric over the log lines that have it, in the unit of the metric."""
    return float(run.series[metric].values.mean())


# What a session of the run log says of its run.
ABOUT_RUN = ("trainer", "method", "student", "teachers", "max_steps", "device", "processes")


def figures(runs: list[Run], now: datetime) -> dict[str, Any]:
    """All figures of a report, as `--json` writes them.

    Returns:
        `written`, `runs` (see `run_figures`) and `different_settings`: field -> its value in each run.
    """
    names = run_names([run.folder for run in runs])
    return {
        "format": 1,
        "written": now.isoformat(timespec="seconds"),
        "runs": [run_figures(run, name, now) for run, name in zip(runs, names, strict=True)],
        "different_settings": different_settings(runs),
    }


def run_figures(run: Run, name: str, now: datetime) -> dict[str, Any]:
    """The figures of one run: state, length, models, warnings, last values, cost, configuration."""
    session = run.session
    return {
        "name": name,
        "folder": str(run.folder),
        "state": run.state,
        "headline": headline(run, now),
        "verdict": verdict(run),
        "changes": changes(run),
        "step": run.step,
        "seconds": round(run.seconds, 1),
        "seconds_since_last_line": None if run.state != OPEN else run.age(now),
        **{key: session.get(key) for key in (*ABOUT_RUN, "argv", "versions")},
        "sessions": [
            {key: entry.get(key) for key in ("started", "ended", "outcome", "first_step")} for entry in run.sessions
        ],
        "log_lines": run.lines,
        "unreadable_lines": run.unread.broken,
        "half_written_lines": run.unread.half_written,
        "warnings": [as_warning(line, run.series) for line in run.warnings],
        "not_finite": run.not_finite,
        "last": {
            metric: {"step": int(series.steps[-1]), "value": float(series.values[-1])}
            for metric, series in run.series.items()
        },
        "cost": cost(run),
        "differs": {
            field: {key: mapping(entry).get(key) for key in ("value", "default", "source")}
            for field, entry in mapping(session.get("differs")).items()
        },
        "config": mapping(session.get("config")),
    }


def as_warning(line: dict[str, Any], metrics: Iterable[str] = ()) -> dict[str, Any]:
    """A warning with all its fields, and the `metric` in whose curve it stands.

    Of a difference `a - b` that is `a`, of a pattern the first of the `metrics` that it fits.

    >>> as_warning({"step": 3, "figure": "q4 - q1"})["metric"], as_warning({"figure": "r/*"}, ["q", "r/x"])["metric"]
    ('q4', 'r/x')
    """
    fields = ("rule", "figure", "value", "threshold", "window", "message")
    figure = str(line.get("figure") or "").partition(" - ")[0]
    metric = next((name for name in metrics if fnmatchcase(name, figure)), figure)
    return {**dict.fromkeys(fields), **line, "metric": metric}


# Log lines of training before which the rules of the monitor do not judge.
JUDGED_FROM = 5


def verdict(run: Run) -> str:
    """What the monitor makes of a run: how many warnings, `nothing learned`, or that it is too short to judge."""
    warnings = [line for line in run.warnings if not line["superseded"]]
    if any(line.get("rule") == "nothing_learned" and never_moved(run, line) for line in warnings):
        return NOTHING_LEARNED
    if warnings:
        return f"{len(warnings)} warning{'s' * (len(warnings) > 1)}"
    if run.not_finite:
        return f"NaN or infinite: {', '.join(run.not_finite)}"
    lines = len(run.series["learning_rate"].steps) if "learning_rate" in run.series else run.lines
    if lines < JUDGED_FROM:
        return f"too short to judge: {lines} log line{'s' * (lines != 1)}, and the rules look at {JUDGED_FROM}"
    return "no warnings"


# The figures that tell how a run went: metric or pattern -> its name and unit in words.
TOLD = {
    "distillation/per_token_divergence": ("divergence", "nats per token"),
    "held_out/divergence": ("divergence on held-out prompts", "nats per token"),
    "rewards/*/mean": ("reward", ""),
    "completions/mean_length": ("length", "tokens"),
    "completions/clipped_ratio": ("cut at the limit", "%"),
}


def changes(run: Run) -> dict[str, dict[str, Any]]:
    """How the run went: metric -> its mean over the `first` and the `last` log lines, and both `in_words`.

    At both ends as many lines as the rules of the monitor look at, in a short run less. It holds the metrics of
    `TOLD` that have two values or more.
    """
    found = {}
    for pattern, (label, unit) in TOLD.items():
        for metric in (name for name in run.series if fnmatchcase(name, pattern)):
            values = run.series[metric].values
            if count := min(JUDGED_FROM, len(values) // 2):
                name = f"{label} {part_for(pattern, metric)}".rstrip()
                first, last = float(values[:count].mean()), float(values[-count:].mean())
                found[metric] = {"first": first, "last": last, "in_words": f"{name} {change(first, last, unit)}"}
    return found


NOTHING_LEARNED = "nothing learned"


def never_moved(run: Run, warning: dict[str, Any]) -> bool:
    """Was the figure of the warning zero in the whole run, not only in the lines that set it off?"""
    series = run.series.get(str(warning.get("figure")))
    return series is None or bool((abs(series.values) <= (warning.get("threshold") or 0.0)).all())


def headline(run: Run, now: datetime) -> str:
    """How the run stands, in a sentence."""
    where = f"at step {run.step:,}"
    if run.state != OPEN:
        planned = run.session.get("max_steps")
        return f"{run.state} {where}" + (f" of {planned:,}" if isinstance(planned, int) and run.step < planned else "")
    age, usual = run.age(now), run.seconds_per_line()
    if not run.lines:
        return "no end recorded and no line logged: just started, or crashed before the first step"
    signs = "" if age is None else f"; last line {ago(age)}"
    signs += "" if usual is None else f", one came every {duration(usual)}"
    return f"no end recorded: in progress or crashed{signs}"


def run_names(folders: list[Path]) -> list[str]:
    """Names that tell runs apart: the last part of each folder, or as much of its end as it takes; of one run, two.

    >>> run_names([Path("/runs/a/opd"), Path("/runs/b/opd"), Path("/runs/c")])
    ['a/opd', 'b/opd', 'c']
    >>> run_names([Path("/home/me/runs/demo/adapter")])
    ['demo/adapter']
    """
    if len(folders) == 1:
        return [Path(*folders[0].parts[-2:]).as_posix()]
    names = [folder.name or str(folder) for folder in folders]
    for i, folder in enumerate(folders):
        twins = [other for other in folders if other.name == folder.name and other != folder]
        if twins:
            shared = os.path.commonpath([folder, *twins])
            names[i] = Path(os.path.relpath(folder, shared)).as_posix()
    return names


def different_settings(runs: list[Run]) -> dict[str, list[Any]]:
    """Fields of the configuration, and of what else sessions say of their runs, that are not the same in all."""
    if len(runs) < 2:
        return {}
    tables = [
        {
            **{key: run.session.get(key) for key in ABOUT_RUN},
            **{f"version of {key}": value for key, value in mapping(run.session.get("versions")).items()},
            **mapping(run.session.get("config")),
        }
        for run in runs
    ]
    fields = dict.fromkeys(key for table in tables for key in table)
    values = {key: [table.get(key) for table in tables] for key in fields}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def mapping(value: Any) -> dict[str, Any]:
    """A value of the header that should be an object; an older or damaged one reads as empty."""
    return value if isinstance(value, dict) else {}
