"""The picture of the finished cells of `internalise.py`."""

from pathlib import Path

from internalise_lines import Line
from internalise_table import MEASURES, NAMES, by_rule, interval, values


def draw(lines: list[Line], path: Path) -> None:
    """One panel per rule: compliance and leakage of each objective, with intervals, seeds as small points.

    Raises:
        ValueError: there is no line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rules = by_rule(lines)
    if not rules:
        raise ValueError("there is no finished cell to draw. Run some, or merge results with --merge.")
    figure, axes = pyplot.subplots(1, len(rules), figsize=(4.2 * len(rules), 3.6), sharey=True, squeeze=False)
    order = [name for name in NAMES if any(name in row for row in rules.values())]
    for axis, (rule, row) in zip(axes[0], rules.items(), strict=True):
        for shift, color, (measure, label) in zip((-0.2, 0.0, 0.2), ("C0", "C2", "C3"), MEASURES.items(), strict=True):
            for objective, cells in row.items():
                found, height = values(cells, measure), order.index(objective) + shift
                mean, low, high = interval(found)
                axis.plot([low, high], [height, height], color=color, linewidth=2, alpha=0.5)
                axis.plot(found.mean(axis=0), [height] * len(cells), ".", color=color, markersize=4, alpha=0.6)
                axis.plot(mean, height, "o", color=color, markersize=6)
            axis.plot([], [], "o", color=color, label=label)
        axis.set_title(rule)
        axis.set_xlim(-0.03, 1.03)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(order)), [NAMES[name] for name in order])
    axes[0][0].invert_yaxis()
    figure.supxlabel("share of answers, 95 % interval over questions and seeds")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(MEASURES), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    print(f"written: {path}")
