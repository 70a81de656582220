"""The results of a study as Markdown, and as a table for the terminal."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.table import Table

from .comparisons import checked, paired, shown, t_interval
from .confusion import DOUBTS, WORKED, Line, Results, by_finding, by_rule, counts, doubts_of, forecasts
from .settings import Arm, Claim, Settings


#: Log names in few words.
WORDS = {
    "support/student_mass": "mass on S",
    "support/overlap": "overlap",
    "entropy": "entropy, nats",
    "completions/mean_length": "tokens, sampled in training",
    "distillation/per_token_divergence": "divergence, nats",
    "to_geometric": "to the geometric mean",
    "to_arithmetic": "to the arithmetic mean",
}


def report(settings: Settings, lines: Sequence[Line]) -> str:
    """What held, all claims with a table each, then what the pre-flight had said."""
    results = Results.of(lines)
    parts = [checks_text(settings, lines)]
    parts += [claim_text(settings, claim, results) for claim in settings.claims.values()]
    parts += [preflight_text(settings, results), monitor_text(settings, results), conditions_text(lines)]
    return "\n".join(part for part in parts if part)


def checks_text(settings: Settings, lines: Sequence[Line]) -> str:
    """What every claim wants to see, and whether it was seen."""
    rows = [
        {
            "claim": settings.claims[check.claim].title,
            "wants": f"{side_text(settings, check.above)} **above** {side_text(settings, check.below)}",
            "difference": shown(check.difference, sign=True),
            "": check.verdict,
        }
        for check in checked(settings, lines)
        if check.difference is not None
    ]
    if not rows:
        return ""
    held = sum(row[""] == "held" for row in rows)
    note = (
        f"{held} of {len(rows)} comparisons held. Differences are paired by seed; *held*: the 95 % interval over "
        "seeds is above zero; *the other way*: below it; *not shown*: zero is inside.\n"
    )
    return f"### What held\n\n{note}\n{markdown(rows)}"


def side_text(settings: Settings, side: str) -> str:
    """A side of a check as tables name it: the label of its arm, and the figure that is meant."""
    name, _, what = side.partition(":")
    return settings.arms[name].label + (f" ({WORDS.get(what, what)})" if what else "")


def claim_text(settings: Settings, claim: Claim, results: Results) -> str:
    """Heading, claim and tables; nothing where none of its arms has run."""
    arms = [settings.arms[name] for name in claim.arms if results.arms.get(name)]
    if not arms:
        return ""
    problems, picks = ([arm for arm in arms if (arm.outcome == "pick") == pick] for pick in (False, True))
    tables = [markdown(problem_row(settings, claim, arm, results) for arm in problems), pick_table(picks, results)]
    return f"### {claim.title}\n\n{claim.text}\n\n" + "\n".join(table for table in tables if table)


def problem_row(settings: Settings, claim: Claim, arm: Arm, results: Results) -> dict[str, str]:
    """The row of an arm in the table of a claim: heading -> text."""
    name = arm.outcome
    what = {"accuracy": "right", "marked": "opens with the mark"}[name]
    outcome = results.after(arm, name)
    against = settings.arms.get(claim.against, arm)
    differs = arm.name != against.name and against.outcome == name and against.prompts == arm.prompts
    cells = {
        "": arm.label,
        "seeds": str(len(outcome)),
        "before": mean(results.before(arm, name)),
        "teacher": mean(results.teacher(arm, name)),
        f"{what}, T = 1": interval(outcome),
        "greedy": mean(results.after(arm, "greedy")) if name == "accuracy" else "",
        "on training problems": mean(results.after(arm, "train_accuracy")) if name == "accuracy" else "",
        "tokens": mean(results.after(arm, "length"), ".0f"),
        "cut off": mean(results.after(arm, "cut_off")),
        "3-gram repetition": mean(results.after(arm, "repetition")),
    }
    cells |= {WORDS[figure]: mean(results.last(arm, figure)) for figure in claim.figures if "length" not in figure}
    cells["worked"] = worked(arm, results)
    cells[f"against: {against.label}"] = shown(paired(results.after(against, name), outcome), sign=True) * differs
    cells["pre-flight"] = preflight_in_words(arm, results)
    return cells


def worked(arm: Arm, results: Results) -> str:
    """In how many seeds an arm closed enough of the gap to its teacher; empty where none can be judged."""
    closed = results.gap_closed(arm)
    return f"{sum(x >= WORKED for x in closed.values())} of {len(closed)}" if closed else ""


def pick_table(arms: Sequence[Arm], results: Results) -> str:
    """One row per arm that picks a letter: where it is, and where theory says it must end."""
    rows = []
    for arm in arms:
        letters = [result["after"]["letters"] for result in results.runs(arm).values()]
        between = mean(results.after(arm, "between"), ".3f") if arm.context else ""
        row = {
            "": arm.label,
            "seeds": str(len(letters)),
            "x, y, z": " ".join(f"{sum(column) / len(column):.2f}" for column in zip(*letters, strict=True)),
        }
        if arm.context:
            row |= {
                "distance to the geometric mean": interval(results.after(arm, "to_geometric"), ".3f"),
                "to the arithmetic mean": interval(results.after(arm, "to_arithmetic"), ".3f"),
                "between both": between,
            }
        else:
            row |= {
                "mass on S": interval(results.after(arm, "mass"), ".4f"),
                "teacher's": mean(results.after(arm, "teacher_mass"), ".4f"),
                "where plain TopK rests, q(S)/e": mean(results.after(arm, "stationary_mass"), ".4f"),
            }
        rows.append(row)
    return markdown(rows)


def preflight_in_words(arm: Arm, results: Results) -> str:
    """What the pre-flight said: in how many seeds it doubted, and why."""
    doubts = [doubts_of(look) for look in results.forecasts.get(arm.name, {}).values()]
    if not doubts:
        return ""
    names = [name for name, _ in Counter(name for of_run in doubts for name in dict.fromkeys(of_run)).most_common()]
    verdict = f"doubts {sum(map(bool, doubts))} of {len(doubts)}"
    return f"{verdict}: {'; '.join(names)}" if names else verdict


def preflight_text(settings: Settings, results: Results) -> str:
    """The confusion table, and what each finding was worth."""
    found = forecasts(settings, results)
    if not found:
        return ""
    total, right = counts(found), sum(x.is_right for x in found)
    rows = [
        {"it said": verdict, "failed": str(total[verdict, False]), "worked": str(total[verdict, True])}
        for verdict in ("ok", *DOUBTS)
    ]
    findings = [
        {"finding": name, "runs doubted": str(count), "of them failed": f"{failed} ({failed / count:.0%})"}
        for name, (count, failed) in by_finding(found).items()
    ]
    failed = sum(not x.worked for x in found)
    return (
        "### What the pre-flight had said\n\n"
        f"{len(found)} runs of {len({x.arm for x in found})} arms, each looked at before its training. A run worked "
        f"where it closed at least {WORKED:.0%} of the gap between student and teacher. *fix* and *stop* are doubts, "
        f"and the pre-flight was right in {right} of {len(found)} ({right / len(found):.0%}). Of all runs {failed} "
        f"failed ({failed / len(found):.0%}): a finding says something where more of the runs that it doubts fail.\n\n"
        f"{markdown(rows)}\n{markdown(findings)}"
    )


def monitor_text(settings: Settings, results: Results) -> str:
    """Which rules of the monitor fired, when, and in which runs."""
    watched, fired = by_rule(settings, results)
    if not watched:
        return ""
    rows = [
        {
            "rule": rule,
            "runs warned": str(len(found)),
            "of them failed": f"{(failed := sum(not worked for _, worked in found))} ({failed / len(found):.0%})",
            "step, median": f"{statistics.median(step for step, _ in found):.0f}",
        }
        for rule, found in fired.items()
    ]
    return f"### What the monitor said meanwhile\n\n{watched} runs, watched step by step.\n\n{markdown(rows)}"


def conditions_text(lines: Sequence[Line]) -> str:
    """The line that says where the results come from: machines, dates, versions and commits."""
    made = [line["made"] for line in lines if line.get("made")]
    if not made:
        return ""
    versions = made[-1]["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "trl", "transformers") if name in versions)
    dates = sorted({x["date"][:10] for x in made})
    commits = ", ".join(dict.fromkeys(str(x["git_commit"]) for x in made))
    machines = ", ".join(dict.fromkeys(str(x["machine"]) for x in made))
    return f"Conditions: {machines}; {dates[0]} to {dates[-1]}; {packages}; commit {commits}.\n"


def mean(values: dict[int, float], form: str = ".2f") -> str:
    """The mean of one value per seed as text; empty where there is none."""
    return format(sum(values.values()) / len(values) + 0.0, form) if values else ""


def interval(values: dict[int, float], form: str = ".2f") -> str:
    """The mean of one value per seed and its interval as text; empty where there is none."""
    if not values:
        return ""
    if form == ".2f":
        return shown(t_interval(list(values.values())))
    found = t_interval(list(values.values()))
    return format(found.value, form) + (f" ± {found.half_width:{form}}" if len(values) > 1 else "")


def markdown(rows: Iterable[dict[str, str]]) -> str:
    """A Markdown table of the rows, with the columns that any of them fills.

    >>> print(markdown([{"": "a|b", "x": "1", "y": ""}, {"": "c", "x": "", "y": ""}]), end="")
    |  | x |
    |---|---|
    | a\\|b | 1 |
    | c |  |
    """
    rows = list(rows)
    if not rows:
        return ""
    names = [
        name for name in dict.fromkeys(name for row in rows for name in row) if any(row.get(name) for row in rows)
    ]
    head = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    body = ["| " + " | ".join(row.get(name, "").replace("|", "\\|") for name in names) + " |" for row in rows]
    return "\n".join([*head, *body]) + "\n"


def summary(settings: Settings, lines: Sequence[Line]) -> Table:
    """The results as a table for the terminal, one row per arm."""
    results = Results.of(lines)
    table = Table("arm", "before", "after", "teacher", "worked", "the pre-flight", box=None, pad_edge=False)
    for arm in settings.arms.values():
        if not results.runs(arm):
            continue
        if arm.outcome == "pick":
            table.add_row(arm.name, "", pick_table([arm], results).splitlines()[-1].split("|")[3].strip())
            continue
        table.add_row(
            arm.name,
            mean(results.before(arm, arm.outcome)),
            interval(results.after(arm, arm.outcome)),
            mean(results.teacher(arm, arm.outcome)),
            worked(arm, results),
            preflight_in_words(arm, results).partition(":")[0],
        )
    return table
