"""Tables of the finished cells as Markdown: means with 95 % intervals over questions and seeds."""

from collections.abc import Iterable

import numpy as np
from internalise_lines import REFERENCES, Cell, Line, all_cells, cell_of, open_cells
from internalise_retention import BEFORE
from marks import marks_of

from opd_trl.evaluation import Interval, bootstrap_interval


RULE_NAMES = {"pirate": "pirate, one sentence", "json": "JSON object", "bullets": "bullet points"}
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
MEASURES = {"greedy": "follows, greedy", "sampled": "follows, T = 1", "elsewhere": "leaks elsewhere"}
BASELINE = "forward_kl"
BEGIN, END = marks_of("internalise")

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
    mean, low, high = interval(found)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def change(found: np.ndarray, bounds: tuple[float, float] | None = (-1, 1), digits: int = 2) -> str:
    """`+0.12 [+0.05, +0.19]`."""
    # Adding zero makes -0.0 a plain zero.
    mean, low, high = (round(end, digits) + 0.0 for end in interval(found, bounds))
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def by_rule(lines: list[Line]) -> ByRule:
    """Lines by rule, then by objective in the order of the table."""
    rules = [*RULE_NAMES, *dict.fromkeys(line["rule"] for line in lines if line["rule"] not in RULE_NAMES)]
    found = {
        rule: {name: [x for x in lines if (x["rule"], x["objective"]) == (rule, name)] for name in NAMES}
        for rule in rules
    }
    return {
        rule: kept for rule, row in found.items() if (kept := {name: cells for name, cells in row.items() if cells})
    }


def trained(row: dict[str, list[Line]]) -> dict[str, list[Line]]:
    """Without the references."""
    return {name: cells for name, cells in row.items() if name not in REFERENCES}


def seeds_of(cells: list[Line]) -> str:
    return ", ".join(str(cell["seed"]) for cell in sorted(cells, key=lambda cell: cell["seed"]))


def markdown(columns: Iterable[str], rows: Iterable[list[str]]) -> str:
    """A table; a rule that is the one of the row above is left out."""
    columns, last = list(columns), None
    text = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for rule, *cells in rows:
        text.append("| " + " | ".join(["" if rule == last else rule, *cells]) + " |")
        last = rule
    return "\n".join(text)


def compliance(rules: ByRule) -> str:
    """Every objective of every rule: tokens, and the three measures."""
    rows = []
    for rule, row in rules.items():
        for name, cells in row.items():
            runs = name in trained(row)
            tokens = f"{np.mean([cell['completion_tokens'] for cell in cells]):.0f}" if runs else ""
            shares = [share(values(cells, measure)) for measure in MEASURES]
            rows.append([RULE_NAMES.get(rule, rule), NAMES[name], seeds_of(cells) if runs else "", tokens, *shares])
    return markdown(["rule", "", "seeds", "tokens", *MEASURES.values()], rows)


def differences(rules: ByRule) -> str:
    """Against the baseline, question by question and seed by seed, over the seeds that both have."""
    rows = []
    for rule, row in rules.items():
        for name, cells in trained(row).items():
            mine, theirs = in_common(cells, row.get(BASELINE, []))
            if name == BASELINE or not mine:
                continue
            gaps = [change(values(mine, measure) - values(theirs, measure)) for measure in MEASURES]
            rows.append([RULE_NAMES.get(rule, rule), NAMES[name], seeds_of(mine), *gaps])
    return markdown(["rule", "", "seeds", *MEASURES.values()], rows) if rows else ""


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
    before = found.get(BEFORE)
    rows = [["", NAMES["before"], "", "", "", share(values([before], "tasks")), ""]] if before else []
    for rule, row in rules.items():
        for name, cells in trained(row).items():
            evaluated = [found[cell_of(cell)] for cell in cells if cell_of(cell) in found]
            seeds = seeds_of(cells) + (f" ({seeds_of(evaluated)})" if 0 < len(evaluated) < len(cells) else "")
            nats = nats_change(cells, row.get("before", []))
            rows.append([RULE_NAMES.get(rule, rule), NAMES[name], seeds, nats, *kept_figures(evaluated, before)])
    columns = ["prose: nats per token", "texts: nats per byte", "questions right", "questions: change"]
    return markdown(["rule", "", "seeds", *columns], rows)


def nats_change(cells: list[Line], before: list[Line]) -> str:
    """Change of nats per token: mean and range over seeds; three numbers have no interval worth the name."""
    if not before:
        return ""
    gaps = [round(cell["retention"] - before[0]["retention"], 3) + 0.0 for cell in cells]
    return f"{np.mean(gaps):+.3f} ({min(gaps):+.3f} to {max(gaps):+.3f})"


def kept_figures(lines: list[Line], before: Line | None) -> list[str]:
    """Change of nats per byte, share of questions, change of it; empty where nothing was evaluated."""
    if not lines or before is None:
        return ["", "", ""]
    nats = values(lines, "nats_per_byte") - values([before], "nats_per_byte")
    tasks = values(lines, "tasks")
    return [change(nats, None, 4), share(tasks), change(tasks - values([before], "tasks"))]


def state(lines: list[Line], kept: list[Line]) -> str:
    """Which cells and evaluations are missing."""
    cells = all_cells()
    missing = open_cells(cells, lines)
    text = f"**{len(missing)} of {len(cells)} cells are missing**: " if missing else f"All {len(cells)} cells are done"
    text += "; ".join(f"{RULE_NAMES[rule]}: {listed(missing, rule)}" for rule in dict.fromkeys(x[0] for x in missing))
    runs = {cell_of(line) for line in lines if line["objective"] not in REFERENCES}
    done = runs & {cell_of(line) for line in kept}
    if len(done) < len(runs):
        text += f". Texts and short questions were put to {len(done)} of {len(runs)} adapters so far"
    return f"{text}."


def listed(cells: list[Cell], rule: str) -> str:
    """`JSD 0.5 (seeds 1, 2), SFT on teacher text (seed 0)`, of one rule."""
    seeds = {name: [str(s) for r, o, s in cells if (r, o) == (rule, name)] for name in NAMES}
    found = {NAMES[name]: numbers for name, numbers in seeds.items() if numbers}
    return ", ".join(f"{name} (seed{'s' * (len(x) > 1)} {', '.join(x)})" for name, x in found.items())


def never(rules: ByRule) -> str:
    """The cells in which no greedy answer followed."""
    found = [
        f"{RULE_NAMES.get(rule, rule)}, {NAMES[name]} (0 of {values(cells, 'greedy').size})"
        for rule, row in rules.items()
        for name, cells in trained(row).items()
        if not values(cells, "greedy").any()
    ]
    return f"Not one greedy answer followed: {'; '.join(found)}." if found else ""


def conditions(lines: list[Line]) -> str:
    """Where and with what, every value that occurs."""
    names = ("machine", "date", "torch", "transformers", "trl", "peft", "commit")
    return (
        "; ".join(f"{name} {' and '.join(sorted({str(x[name]) for x in lines if name in x}))}" for name in names) + "."
    )


def tables(lines: list[Line], kept: list[Line]) -> str:
    """All of it, as it stands in docs/results.md."""
    if not lines:
        raise ValueError("there is no finished cell. Run some, or merge results with --merge.")
    rules = by_rule(lines)
    parts = [state(lines, kept), compliance(rules), never(rules)]
    if gaps := differences(rules):
        parts += [f"Difference to {NAMES[BASELINE]}, paired by question and seed:", gaps]
    parts += ["What is left of the rest:", retention(rules, kept), f"Conditions: {conditions(lines)}"]
    return "\n\n".join(part for part in parts if part)
