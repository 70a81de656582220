"""Pictures of a run from its log lines; matplotlib without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..durable import apart


# Okabe and Ito's colours, told apart with every kind of colour vision, and dashes for the curves of one run.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", ":", "-.")


class Panel(NamedTuple):
    """One plot: `title`, `metrics` (log name -> label) and the range of its axis, where it is known."""

    title: str
    metrics: dict[str, str]
    limits: tuple[float, float] | None = None


class Curve(NamedTuple):
    """Values `(n,)` at steps `(n,)`, under a label; `run` names whose they are where there are several runs."""

    steps: Sequence[float]
    values: Sequence[float]
    label: str
    run: str = ""


DISTILLATION_PANELS = (
    Panel("divergence per token (nats)", {"distillation/per_token_divergence": "student's own samples"}, (0.0, None)),
    Panel(
        "on the support",
        {"support/student_mass": "student mass", "support/teacher_mass": "teacher mass", "support/overlap": "overlap"},
        (0.0, 1.02),
    ),
)


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure, sizes in inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_run(history: Sequence[dict[str, Any]], panels: Sequence[Panel], path: Path, *, title: str) -> Path:
    """Draw panels side by side into the PNG `path`, under a `title`; return the path.

    `history` are log lines, each with a `step` and some of the metrics; a metric that no line has is left out.
    """
    figure = new_figure(4.2 * len(panels), 3.4)
    figure.suptitle(title, fontsize=11)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for metric, label in panel.metrics.items():
            points = [(line["step"], line[metric]) for line in history if line.get(metric) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5, label=label)
        finish(axes, panel)
    return saved(figure, path, dpi=120)


def plot_curves(curves: Sequence[Curve], panel: Panel, path: Path, *, marks: Sequence[int] = ()) -> Path:
    """Draw the curves of one or several runs into a PNG of one panel.

    Args:
        curves: of one run each has its colour; of several each run has a colour and each label a dash.
        panel: its title and the range of its axis.
        path: file to write.
        marks: steps with a vertical line, such as those of warnings.

    Returns:
        `path`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "loss.png"
        >>> plot_curves([Curve([1, 2], [0.5, 0.4], "loss")], Panel("loss", {}), path, marks=[2]) == path
        True
    """
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    runs, labels = (list(dict.fromkeys(names)) for names in zip(*((c.run, c.label) for c in curves), strict=True))
    for curve in curves:
        colour, dash = (
            (labels.index(curve.label), 0) if len(runs) == 1 else (runs.index(curve.run), labels.index(curve.label))
        )
        text = f"{curve.run}: {curve.label}" if curve.run and len(labels) > 1 else curve.run or curve.label
        dots = "o" if len(curve.steps) <= 40 else None
        style = {"color": COLOURS[colour % len(COLOURS)], "linestyle": DASHES[dash % len(DASHES)]}
        axes.plot(curve.steps, curve.values, label=text, linewidth=1.5, marker=dots, markersize=3, **style)
    for i, step in enumerate(marks):
        axes.axvline(step, color="#b00020", linewidth=1, linestyle=":", label="warning" if i == 0 else None)
    finish(axes, panel)
    return saved(figure, path, dpi=150)


def finish(axes: Any, panel: Panel) -> None:
    """Give one plot its title, the range of its axis, a grid and, where anything is drawn, a legend."""
    axes.set(title=panel.title, xlabel="step")
    axes.set_ylim(panel.limits)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)


def saved(figure: Any, path: Path, *, dpi: int) -> Path:
    """Write a figure as a PNG, its folder made where it is missing; return `path`."""
    with apart(path) as part:
        figure.savefig(part, dpi=dpi)
    return path
