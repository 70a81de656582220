"""The finished cells as Markdown and as a picture: means with 95 % intervals over questions and seeds."""

from pathlib import Path

import numpy as np
from internalise import BEFORE, REFERENCES, all_cells, case_of, cell_of, open_cells
from lines import Line, conditions_of

from opd_trl.diagnostics.plots import new_figure
from opd_trl.evaluation import Interval, bootstrap_interval
from opd_trl.reproduce.comparisons import shown
from opd_trl.reproduce.tables import markdown


RULE_NAMES = {"pirate": "pirate, one sentence", "json": "JSON object", "bullets": "bullet points"}
NAMES = {
    "before": "student before",
    "stop_gradient_topk": "stop-gradient TopK",
    "forward_kl": "forward KL",
    "jsd": "JSD 0.5",
    "sft": "SFT on teacher text",
    "teacher": "teacher, with the context",
}
MEASURES = {"greedy": "follows, greedy", "sampled": "follows, T = 1", "elsewhere": "leaks elsewhere"}
BASELINE = "forward_kl"
CONDITIONS = ("machine", "date", "torch", "transformers", "trl", "peft", "commit")

ByRule = dict[str, dict[str, list[Line]]]


def values(lines: list[Line], measure: str) -> np.ndarray:
    """(questions, seeds)."""
    ordered = sorted(lines, key=lambda line: line["seed"])
    return np.array([line[measure] for line in ordered], dtype=float).T


def interval(found: np.ndarray, bounds: tuple[float, float] | None = (0, 1)) -> Interval:
    """Of (questions, seeds), over both: seeds are runs, which differ as a whole."""
    return bootstrap_interval(found, over_seeds=True, bounds=bounds)


def share(found: np.ndarray) -> str:
    """`0.83 [0.76, 0.90]`."""
    return shown(interval(found))


def change(found: np.ndarray) -> str:
    """`+0.12 [+0.05, +0.19]`."""
    return shown(interval(found, (-1, 1)), sign=True)


def by_rule(lines: list[Line]) -> ByRule:
    """Lines by rule, then by objective in the order of the table."""
    found: ByRule = {}
    for rule in RULE_NAMES:
        for name in NAMES:
            if cells := [line for line in lines if cell_of(line)[:2] == (rule, name)]:
                found.setdefault(rule, {})[name] = cells
    return found


def trained(row: dict[str, list[Line]]) -> dict[str, list[Line]]:
    """Without the references."""
    return {name: cells for name, cells in row.items() if name not in REFERENCES}


def seeds_of(cells: list[Line]) -> str:
    return ", ".join(sorted(str(cell["seed"]) for cell in cells))


def table(rows: list[dict[str, str]]) -> str:
    """A Markdown table; a rule that is the one of the row above is left out."""
    shown, above = [], None
    for row in rows:
        shown.append(row | {"rule": "" if row["rule"] == above else row["rule"]})
        above = row["rule"]
    return markdown(shown)


def compliance(rules: ByRule) -> str:
    """Every objective of every rule: tokens, and the three measures."""
    rows = []
    for rule, row in rules.items():
        for name, cells in row.items():
            runs = name in trained(row)
            tokens = f"{np.mean([cell['completion_tokens'] for cell in cells]):.0f}" if runs else ""
            about = {
                "rule": RULE_NAMES[rule],
                "": NAMES[name],
                "seeds": seeds_of(cells) if runs else "",
                "tokens": tokens,
            }
            rows.append(about | {title: share(values(cells, measure)) for measure, title in MEASURES.items()})
    return table(rows)


def differences(rules: ByRule) -> str:
    """Against the baseline, question by question and seed by seed, over the seeds that both have."""
    rows = []
    for rule, row in rules.items():
        for name, cells in trained(row).items():
            mine, theirs = in_common(cells, row.get(BASELINE, []))
            if name != BASELINE and mine:
                about = {"rule": RULE_NAMES[rule], "": NAMES[name], "seeds": seeds_of(mine)}
                gaps = {title: change(values(mine, x) - values(theirs, x)) for x, title in MEASURES.items()}
                rows.append(about | gaps)
    return table(rows)


def in_common(cells: list[Line], others: list[Line]) -> tuple[list[Line], list[Line]]:
    """Of two lists, the lines whose seed both have."""
    seeds = {cell["seed"] for cell in cells} & {cell["seed"] for cell in others}
    return [x for x in cells if x["seed"] in seeds], [x for x in others if x["seed"] in seeds]


def retention(rules: ByRule, kept: list[Line]) -> str:
    """What is left: the nats of the cells, and texts and questions where `--retention` has evaluated an adapter.

    Raises:
        ValueError: the evaluations are of different protocols or questions.
    """
    if len({(line["protocol_hash"], str(line["data"])) for line in kept}) > 1:
        raise ValueError(
            "the lines of --retention are of different protocols. Remove those of the old one, run again."
        )
    found = {cell_of(line): line for line in kept}
    before, right = found.get(BEFORE), "questions right"
    rows = [{"rule": "", "": NAMES["before"], right: share(values([before], "tasks"))}] if before else []
    for rule, row in rules.items():
        for name, cells in trained(row).items():
            evaluated = [found[cell_of(cell)] for cell in cells if cell_of(cell) in found]
            seeds = seeds_of(cells) + (f" ({seeds_of(evaluated)})" if 0 < len(evaluated) < len(cells) else "")
            line = {"rule": RULE_NAMES[rule], "": NAMES[name], "seeds": seeds}
            line["prose: nats per token"] = nats_change(cells, row.get("before", []))
            if evaluated and before:
                nats, tasks = ((values(evaluated, x), values([before], x)) for x in ("nats_per_byte", "tasks"))
                line["texts: nats per byte"] = shown(interval(nats[0] - nats[1], None), sign=True, digits=4)
                line |= {right: share(tasks[0]), "questions: change": change(tasks[0] - tasks[1])}
            rows.append(line)
    columns = ("rule", "", "seeds", "prose: nats per token", "texts: nats per byte", right, "questions: change")
    return table([{name: row.get(name, "") for name in columns} for row in rows])


def nats_change(cells: list[Line], before: list[Line]) -> str:
    """Change of nats per token: mean and range over seeds; three numbers have no interval worth the name."""
    if not before:
        return ""
    gaps = [round(cell["retention"] - before[0]["retention"], 3) + 0.0 for cell in cells]
    return f"{np.mean(gaps):+.3f} ({min(gaps):+.3f} to {max(gaps):+.3f})"


def state(lines: list[Line], kept: list[Line]) -> str:
    """Which cells and evaluations are missing."""
    cells = all_cells()
    missing = open_cells(cells, lines)
    text = f"**{len(missing)} of {len(cells)} cells are missing**: " if missing else f"All {len(cells)} cells are done"
    text += "; ".join(map(case_of, missing))
    runs = {cell_of(line) for line in lines if line["objective"] not in REFERENCES}
    done = runs & {cell_of(line) for line in kept}
    if len(done) < len(runs):
        text += f". Texts and short questions were put to {len(done)} of {len(runs)} adapters so far"
    return f"{text}."


def never(rules: ByRule) -> str:
    """The cells in which no greedy answer followed."""
    found = [
        f"{RULE_NAMES[rule]}, {NAMES[name]} (0 of {values(cells, 'greedy').size})"
        for rule, row in rules.items()
        for name, cells in trained(row).items()
        if not values(cells, "greedy").any()
    ]
    return f"Not one greedy answer followed: {'; '.join(found)}." if found else ""


def tables(lines: list[Line], kept: list[Line]) -> str:
    """All of it, as it stands in docs/results-rules.md."""
    rules = by_rule(lines)
    parts = [state(lines, kept), compliance(rules), never(rules)]
    if gaps := differences(rules):
        parts += [f"Difference to {NAMES[BASELINE]}, paired by question and seed:", gaps]
    parts += ["What is left of the rest:", retention(rules, kept), conditions_of(lines, CONDITIONS)]
    return "\n\n".join(part.strip() for part in parts if part)


def draw(lines: list[Line], path: Path) -> None:
    """One panel per rule: compliance and leakage of each objective, with intervals, seeds as small points."""
    rules = by_rule(lines)
    figure = new_figure(4.2 * len(rules), 3.6)
    axes = figure.subplots(1, len(rules), sharey=True, squeeze=False)[0]
    order = [name for name in NAMES if any(name in row for row in rules.values())]
    for axis, (rule, row) in zip(axes, rules.items(), strict=True):
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
    axes[0].set_yticks(range(len(order)), [NAMES[name] for name in order])
    axes[0].invert_yaxis()
    figure.supxlabel("share of answers, 95 % interval over questions and seeds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(MEASURES), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
