"""The report of a study, and its pictures: what each arm reached, how it went there, what the pre-flight had said."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..diagnostics.plots import COLOURS, new_figure, saved
from ..durable import atomically
from .comparisons import t_interval
from .confusion import WORDS, Line, Results, Run, looked_at
from .settings import Arm, Settings
from .tables import TITLES, report


GREY = "#888888"
SHADES = dict(zip(WORDS, (COLOURS[0], COLOURS[4], COLOURS[1]), strict=True))
OUTCOMES = {"accuracy": "right on held-out problems, T = 1", "marked": "opens with the mark, T = 1"}


def write_report(settings: Settings, lines: Sequence[Line], home: Path) -> list[Path]:
    """Write `report.md` and a picture of each claim that has a result; return what was written."""
    home.mkdir(parents=True, exist_ok=True)
    page = home / "report.md"
    with atomically(page) as file:
        file.write(report(settings, lines))
    results = Results.of(lines)
    pictures = [
        draw_claim(settings, lines, name, home / f"{name}.png")
        for name, claim in settings.claims.items()
        if set(results.arms) & set(claim.arms)
    ]
    runs = looked_at(settings, results)
    return [page, *pictures, *([draw_trials(settings, runs, home / "trials.png")] if runs else [])]


def colour(place: int) -> str:
    """The colour of an arm by its place in the claim."""
    return COLOURS[place % len(COLOURS)]


def dashes(place: int) -> str:
    """The dashes of an arm's curve by its place in the claim: arms that share a colour differ in them."""
    return ("-", "--", ":")[place // len(COLOURS) % 3]


def draw_claim(settings: Settings, lines: Sequence[Line], name: str, path: Path) -> Path:
    """Above what the arms reached, below how they went there; picks have a panel of their own."""
    claim, results = settings.claims[name], Results.of(lines)
    arms = [settings.arms[arm] for arm in claim.arms if results.arms.get(arm)]
    problems, picks = ([arm for arm in arms if (arm.outcome == "pick") == pick] for pick in (False, True))
    figures = [figure for figure in claim.figures if any(results.last(arm, figure) for arm in problems)]
    height, panels = 0.3 * len(problems) + 1.1, len(figures) + bool(picks)
    figure = new_figure(10.5, height + 3.4)
    figure.suptitle(claim.title)
    above, below = figure.subfigures(2, 1, height_ratios=(height, 3.2)) if problems else (None, figure)
    if problems:
        draw_outcomes(above.subplots(), problems, results)
    axes = list(below.subplots(1, panels, squeeze=False)[0]) if panels else []  # SFT has no curves
    for log_name in figures:
        draw_curves(axes.pop(0), problems, results, log_name)
    if picks:
        draw_picks(axes.pop(0), picks, results)
    return saved(figure, path, dpi=110)


def draw_outcomes(axes: Any, arms: Sequence[Arm], results: Results) -> None:
    """A row per arm: seeds, their mean with its interval, and lines for student and teacher."""
    for place, arm in enumerate(arms):
        values = list(results.after(arm, arm.outcome).values())
        axes.plot(values, [place] * len(values), "o", color=GREY, markersize=3, alpha=0.7)
        found = t_interval(values)
        half = found.half_width if len(values) > 1 else 0.0
        axes.errorbar([found.value], [place], xerr=[[half], [half]], fmt="o", color=colour(place), capsize=3)
        for reference, mark in ((results.before(arm, arm.outcome), "|"), (results.teacher(arm, arm.outcome), "*")):
            if reference:
                axes.plot([np.mean(list(reference.values()))], [place], mark, color="black", markersize=8)
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms], fontsize=8)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(OUTCOMES[arms[0].outcome] + "\n| student before   * teacher", fontsize=8)
    axes.grid(axis="x", alpha=0.3)


def draw_curves(axes: Any, arms: Sequence[Arm], results: Results, log_name: str) -> None:
    """The curve of a logged figure for each arm: its mean over seeds, and their range."""
    for place, arm in enumerate(arms):
        curves = [x["curves"] for x in results.runs(arm).values() if log_name in x["curves"]]
        if not curves:
            continue
        values = np.array([curve[log_name] for curve in curves])
        steps = curves[0]["step"]
        axes.plot(steps, values.mean(0), dashes(place), color=colour(place), linewidth=1.4, label=arm.label)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour(place), alpha=0.12, linewidth=0)
    axes.set_title(TITLES.get(log_name, log_name), fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.grid(alpha=0.3)


def draw_picks(axes: Any, arms: Sequence[Arm], results: Results) -> None:
    """Two contexts: the letters; the student as its own teacher: the mass on S on its way to q(S) / e."""
    if arms[0].context is None:
        for place, arm in enumerate(arms):
            draw_curves(axes, [arm], results, "support/student_mass")
            axes.lines[-1].set_color(colour(place))
            axes.collections[-1].set_color(colour(place))
        resting = np.mean(list(results.after(arms[0], "stationary_mass").values()))
        axes.axhline(resting, color="black", linestyle=":", label="q(S) / e")
        axes.set_title("mass on S", fontsize=9)
        axes.set_ylim(0, 1)
    else:
        for place, arm in enumerate(arms):
            letters = np.array([x["after"]["letters"] for x in results.runs(arm).values()])
            at = np.arange(3) + 0.35 * place - 0.175
            axes.bar(at, letters.mean(0), 0.33, color=colour(place), label=arm.label)
            axes.plot(np.repeat(at, len(letters)), letters.T.ravel(), ".", color="black", markersize=3)
        axes.set_xticks(range(3), ["x", "y", "z"])
        axes.set_title("probability of each letter", fontsize=9)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)


def draw_trials(settings: Settings, runs: Sequence[Run], path: Path) -> Path:
    """A row per arm, a dot per run: how far its score moved, coloured by the word of its longest trial."""
    arms = [arm for arm in settings.arms.values() if any(run.arm == arm.name for run in runs)]
    places = {arm.name: place for place, arm in enumerate(arms)}
    steps = str(max(settings.trial["steps"]))
    height = max(3.0, 0.3 * len(arms) + 1.6)
    figure = new_figure(9, height)
    axes = figure.subplots()
    for word, shade in SHADES.items():
        found = [run for run in runs if run.words[steps] == word]
        at = [run.change for run in found], [places[run.arm] for run in found]
        axes.plot(*at, "o", color=shade, markersize=5, alpha=0.7, label=f"{word} ({len(found)})")
    axes.axvline(0, color="black", linestyle=":")
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms], fontsize=8)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_title(f"What the trial of {steps} steps had said, and what the run came to", fontsize=10)
    axes.set_xlabel("right on held-out problems, after less before", fontsize=8)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, -0.9 / (height - 0.8)), ncols=3, frameon=False)
    axes.grid(axis="x", alpha=0.3)
    return saved(figure, path, dpi=110)
