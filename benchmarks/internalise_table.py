"""Tables and picture of the finished cells: means with 95 % intervals over questions and seeds."""

from pathlib import Path
from typing import Any

import numpy as np
from measure import print_table


NAMES = {
    "before": "student before",
    "stop_gradient_topk": "stop-gradient TopK",
    "forward_kl": "forward KL",
    "jsd": "JSD 0.5",
    "sft": "SFT on teacher text",
    "default": "reverse KL, student's TopK (default)",
    "mixed": "mixed (the demo's)",
    "teacher": "teacher, with the context",
}
MEASURES = {"greedy": "follows, greedy", "sampled": "follows, T=1", "elsewhere": "leaks elsewhere"}
RESAMPLES = 10_000


def bits(lines: list[dict[str, Any]], measure: str) -> np.ndarray:
    """(seeds, questions) of 0 and 1."""
    return np.array([line[measure] for line in sorted(lines, key=lambda line: line["seed"])], dtype=float)


def interval(verdicts: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean: seeds and questions are drawn anew, each question for all seeds alike.

    Args:
        verdicts: (seeds, questions).

    Returns:
        lower and upper end. Where all verdicts agree, the bootstrap gives a point: read it as "within a few percent".
    """
    rng, (seeds, questions) = np.random.default_rng(seed), verdicts.shape
    means = np.empty(resamples)
    for i in range(resamples):
        rows, columns = rng.integers(seeds, size=seeds), rng.integers(questions, size=questions)
        means[i] = verdicts[np.ix_(rows, columns)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def with_interval(verdicts: np.ndarray, **options: int) -> str:
    """`0.83 [0.76, 0.90]`."""
    low, high = interval(verdicts, **options)
    return f"{verdicts.mean():.2f} [{low:.2f}, {high:.2f}]"


def by_rule(lines: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Lines by rule, then by objective in the order of the table."""
    rules = dict.fromkeys(line["rule"] for line in lines)
    found = {
        rule: {name: [x for x in lines if (x["rule"], x["objective"]) == (rule, name)] for name in NAMES}
        for rule in rules
    }
    return {rule: {name: cells for name, cells in row.items() if cells} for rule, row in found.items()}


def row_of(objective: str, cells: list[dict[str, Any]], before: float | None) -> list[str]:
    """A row of the table: name, seeds, tokens, the three measures, retention against `before`."""
    verdicts = [with_interval(bits(cells, measure)) for measure in MEASURES]
    trained = [cell for cell in cells if "steps" in cell]
    tokens = f"{np.mean([cell['completion_tokens'] for cell in trained]):.0f}" if trained else ""
    change = [cell["retention"] - before for cell in trained if before is not None]
    retention = f"{np.mean(change):+.3f} ({min(change):+.3f} to {max(change):+.3f})" if change else ""
    if objective == "before":
        retention = f"{before:.3f}"
    seeds = ", ".join(str(cell["seed"]) for cell in cells) if trained else ""
    return [NAMES[objective], seeds, tokens, *verdicts, retention]


def differences(row: dict[str, list[dict[str, Any]]], baseline: str = "sft") -> list[list[str]]:
    """Paired differences to a baseline, question by question and seed by seed, where both have the seed."""
    rows = []
    for objective, cells in row.items():
        seeds = {cell["seed"] for cell in cells} & {cell["seed"] for cell in row.get(baseline, [])}
        if objective in ("before", "teacher", baseline) or not seeds:
            continue
        mine = [cell for cell in cells if cell["seed"] in seeds]
        theirs = [cell for cell in row[baseline] if cell["seed"] in seeds]
        gaps = [with_interval(bits(mine, measure) - bits(theirs, measure)) for measure in MEASURES]
        rows.append([NAMES[objective], ", ".join(map(str, sorted(seeds))), *gaps])
    return rows


def print_tables(lines: list[dict[str, Any]]) -> None:
    """One table per rule, and one of the paired differences to SFT."""
    for rule, row in by_rule(lines).items():
        columns = ["", "seeds", "completion tokens", *MEASURES.values(), "nats per token of plain text: change"]
        before = next((cell["retention"] for cell in row.get("before", [])), None)
        print_table(f"Rule {rule}", columns, [row_of(objective, cells, before) for objective, cells in row.items()])
        if gaps := differences(row):
            print_table(f"Rule {rule}: difference to {NAMES['sft']}", ["", "seeds", *MEASURES.values()], gaps)
    for name in ("commit", "machine", "date", "torch", "trl"):
        print(f"\n{name}: {', '.join(sorted({str(line[name]) for line in lines}))}")


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """One panel per rule: compliance and leakage of each objective, with intervals, seeds as small points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rules = by_rule(lines)
    figure, axes = pyplot.subplots(1, len(rules), figsize=(4.2 * len(rules), 3.6), sharey=True, squeeze=False)
    order = [name for name in NAMES if any(name in row for row in rules.values())]
    for axis, (rule, row) in zip(axes[0], rules.items(), strict=True):
        for shift, color, (measure, label) in zip((-0.2, 0.0, 0.2), ("C0", "C2", "C3"), MEASURES.items(), strict=True):
            for objective, cells in row.items():
                verdicts, height = bits(cells, measure), order.index(objective) + shift
                low, high = interval(verdicts)
                axis.plot([low, high], [height, height], color=color, linewidth=2, alpha=0.5)
                axis.plot(verdicts.mean(axis=1), [height] * len(cells), ".", color=color, markersize=4, alpha=0.6)
                axis.plot(verdicts.mean(), height, "o", color=color, markersize=6)
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
    print(f"written: {path}")
