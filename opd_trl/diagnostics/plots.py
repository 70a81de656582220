"""Pictures of a run from its log lines; matplotlib without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Panel(NamedTuple):
    """One plot: `title`, `metrics` (log name -> label) and the range of its axis, where it is known."""

    title: str
    metrics: dict[str, str]
    limits: tuple[float, float] | None = None


DISTILLATION_PANELS = (
    Panel("divergence per token (nats)", {"distillation/per_token_divergence": "student's own samples"}, (0.0, None)),
    Panel(
        "on the support",
        {"support/student_mass": "student mass", "support/teacher_mass": "teacher mass", "support/overlap": "overlap"},
        (0.0, 1.02),
    ),
)


def plot_run(history: Sequence[dict[str, Any]], panels: Sequence[Panel], path: Path, *, title: str) -> Path:
    """Draw the panels side by side into a PNG.

    Args:
        history: log lines, each with a `step` and some of the metrics.
        panels: what to draw; a metric that no line has is left out.
        path: file to write.
        title: above all panels.

    Returns:
        `path`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for metric, label in panel.metrics.items():
            points = [(line["step"], line[metric]) for line in history if line.get(metric) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5, label=label)
        axes.set(title=panel.title, xlabel="step")
        axes.set_ylim(panel.limits)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
