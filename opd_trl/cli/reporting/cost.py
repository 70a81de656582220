"""Where the seconds of a step go."""

from typing import Any

from ...reports.runs import Run


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
    """Mean of a metric over the lines that have it."""
    return float(run.series[metric].values.mean())
