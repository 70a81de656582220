"""The results of a study as Markdown, and as a table for the terminal."""

import statistics
from collections.abc import Iterable, Sequence

from rich.table import Table

from .comparisons import checked, checks_of, paired, shown, t_interval
from .confusion import CAME_TO, HELPED, WORDS, Line, Results, Run, Score, by_rule, looked_at, stopped
from .rates import tried
from .settings import Arm, Claim, Settings


#: Log names in few words.
TITLES = {
    "support/student_mass": "mass on S",
    "support/overlap": "overlap",
    "entropy": "entropy, nats",
    "completions/mean_length": "tokens, sampled in training",
    "distillation/per_token_divergence": "divergence, nats",
    "to_geometric": "to the geometric mean",
    "to_arithmetic": "to the arithmetic mean",
}


def report(settings: Settings, lines: Sequence[Line]) -> str:
    """What held, the rates, all claims with a table each, then what trial, pre-flight and monitor had said."""
    results = Results.of(lines)
    parts = [checks_text(settings, lines), rates_text(settings, lines)]
    parts += [claim_text(settings, claim, results) for claim in settings.claims.values()]
    parts += [
        trial_text(settings, looked_at(settings, results)),
        static_text(settings, results),
        monitor_text(settings, results),
        conditions_text(lines),
    ]
    return "\n".join(part for part in parts if part)


def checks_text(settings: Settings, lines: Sequence[Line], *, title: str = "What held") -> str:
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
    return f"### {title}\n\n{note}\n{markdown(rows)}"


def side_text(settings: Settings, side: str) -> str:
    """A side of a check as tables name it: the label of its arm, and the figure that is meant."""
    name, _, what = side.partition(":")
    return settings.arms[name].label + (f" ({TITLES.get(what, what)})" if what else "")


def claim_text(settings: Settings, claim: Claim, results: Results) -> str:
    """Heading, claim, how many of its comparisons held, and tables; nothing where none of its arms has run."""
    arms = [settings.arms[name] for name in claim.arms if results.arms.get(name)]
    if not arms:
        return ""
    problems, picks = ([arm for arm in arms if (arm.outcome == "pick") == pick] for pick in (False, True))
    answers = markdown(answers_row(claim, arm, results) for arm in problems)
    tables = [
        markdown(score_row(settings, claim, arm, results) for arm in problems),
        answers and f"What the trained student writes:\n\n{answers}",
        pick_table(picks, results),
    ]
    verdicts = [check.verdict for check in checks_of(claim, settings, results) if check.difference is not None]
    seen = f" **Seen:** {verdicts.count('held')} of {len(verdicts)} comparisons held." if verdicts else ""
    return f"### {claim.title}\n\n**Claim:** {claim.text}{seen}\n\n" + "\n".join(table for table in tables if table)


def score_row(settings: Settings, claim: Claim, arm: Arm, results: Results) -> dict[str, str]:
    """The row of an arm in the table of a claim, heading -> text: how good its student is."""
    name = arm.outcome
    what = {"accuracy": "right", "marked": "opens with the mark"}[name]
    outcome, against = results.after(arm, name), settings.arms.get(claim.against, arm)
    differs = arm.name != against.name and against.outcome == name and against.prompts == arm.prompts
    return {
        "": arm.label,
        "rate": rate_text(results.rates.get(arm.name)),
        "seeds": str(len(outcome)),
        "before": mean(results.before(arm, name)),
        "teacher": mean(results.teacher(arm, name)),
        f"{what}, T = 1": interval(outcome),
        "helped": helped(arm, results),
        f"against: {against.label}": shown(paired(results.after(against, name), outcome), sign=True) * differs,
    }


def answers_row(claim: Claim, arm: Arm, results: Results) -> dict[str, str]:
    """The same: how its student writes, and the figures that the claim is about."""
    counted = arm.outcome == "accuracy"
    return {
        "": arm.label,
        "right, greedy": mean(results.after(arm, "greedy")) if counted else "",
        "on training problems": mean(results.after(arm, "train_accuracy")) if counted else "",
        "tokens": mean(results.after(arm, "length"), ".0f"),
        "cut off": mean(results.after(arm, "cut_off")),
        "repeated 3-grams": mean(results.after(arm, "repetition")),
    } | {TITLES[figure]: mean(results.last(arm, figure)) for figure in claim.figures if "length" not in figure}


def rate_text(rate: float | None) -> str:
    """A learning rate as tables show it; empty for none.

    >>> rate_text(1e-3), rate_text(None)
    ('1e-03', '')
    """
    return "" if rate is None else f"{rate:.0e}"


def rates_text(settings: Settings, lines: Sequence[Line], *, title: str = "Learning rates") -> str:
    """What each arm reached at each rate on the seeds of the choice, its best in bold."""
    found = tried(settings, lines)
    if not found:
        return ""
    rows = [
        {"": settings.arms[name].label}
        | {
            rate_text(rate): f"**{value:.2f}**" if value == max(means.values()) else f"{value:.2f}"
            for rate, value in sorted(means.items())
        }
        for name, means in sorted(found.items(), key=lambda x: list(settings.arms).index(x[0]))
    ]
    seeds = " and ".join(map(str, settings.rates["seeds"]))
    note = f"Mean outcome on seed {seeds}, by learning rate. Each arm is reported at its best one, on other seeds.\n"
    return f"### {title}\n\n{note}\n{markdown(rows)}"


def helped(arm: Arm, results: Results) -> str:
    """In how many seeds an arm helped beyond the interval; empty where none can be judged."""
    words = list(results.came_to(arm).values())
    return f"{words.count(HELPED)} of {len(words)}" if words else ""


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


def trial_text(settings: Settings, runs: Sequence[Run], *, title: str = "What the trial had said") -> str:
    """Word against outcome, for each length of the trial."""
    if not runs:
        return ""
    parts = [
        f"### {title}\n",
        f"{len(runs)} runs of {len({run.arm for run in runs})} arms, each looked at in its first steps, on "
        f"{settings.trial['prompts']} prompts that it does not train on, and the word written down before it went on. "
        "*Helped* and *hurt*: the score of the finished run against that before it, beyond the 95 % interval over "
        "problems. Right: *works* that helped, *harms* that did not.\n",
    ]
    for steps in map(str, settings.trial["steps"]):
        score = Score.of(runs, steps)
        rows = [
            {f"trial of {steps} steps": word} | {outcome: str(score.counts[word, outcome]) for outcome in CAME_TO}
            for word in WORDS
        ]
        blind = score_in_words(Score.of(runs, steps, blind=True), len(runs))
        parts += [
            markdown(rows),
            f"{score_in_words(score, len(runs)).capitalize()} By the divergence alone: {blind}\n",
        ]
    return "\n".join(parts)


def score_in_words(score: Score, total: int) -> str:
    """How often it decided, and how often it was right."""
    said = f"it said *works* or *harms* of {score.decided} of {total} ({score.decided / total:.0%})"
    return (
        f"{said} and was right in {score.right} ({score.right / score.decided:.0%})." if score.decided else f"{said}."
    )


def static_text(settings: Settings, results: Results) -> str:
    """What the part of the pre-flight that trains nothing had stopped."""
    runs, good = stopped(settings, results)
    return f"The static part said *stop* of {runs} runs; {good} of them helped.\n" if runs else ""


def monitor_text(settings: Settings, results: Results) -> str:
    """Which rules of the monitor fired, when, and in which runs."""
    watched, good, fired = by_rule(settings, results)
    if not watched:
        return ""
    rows = [
        {
            "rule": rule,
            "runs warned": str(len(found)),
            "of them did not help": f"{(bad := sum(not x for _, x in found))} ({bad / len(found):.0%})",
            "step, median": f"{statistics.median(step for step, _ in found):.0f}",
        }
        for rule, found in fired.items()
    ]
    told = f"{watched} runs, watched step by step; {watched - good} of them ({1 - good / watched:.0%}) did not help."
    return f"### What the monitor said meanwhile\n\n{told}\n\n{markdown(rows)}"


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
    found = t_interval(list(values.values()))
    if form == ".2f":
        return shown(found)
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
    table = Table("arm", "rate", "before", "after", "teacher", "helped", box=None, pad_edge=False)
    for arm in settings.arms.values():
        if not results.runs(arm):
            continue
        if arm.outcome == "pick":
            table.add_row(arm.name, "", "", pick_table([arm], results).splitlines()[-1].split("|")[3].strip())
            continue
        table.add_row(
            arm.name,
            rate_text(results.rates.get(arm.name)),
            mean(results.before(arm, arm.outcome)),
            interval(results.after(arm, arm.outcome)),
            mean(results.teacher(arm, arm.outcome)),
            helped(arm, results),
        )
    return table
