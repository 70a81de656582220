"""The trials of `opd-trl preflight`: which runs they try, and what came out, in a table and a word."""

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...evaluation.statistics import Interval
from ...preflight.trial import PROMPTS, STEPS
from ...preflight.trial.verdict import ENDED_BETTER, changes, judged, steps_to_decide


FLAGS: dict[str, dict[str, Any]] = {
    "trial": {"type": int},
    "no_trial": {"action": "store_true"},
    "trial_prompts": {"type": int},
    "rates": {"default": ""},
    "losses": {"default": ""},
}
#: Flags that ask for a trial; without any of them what stands against one is said, and no error.
ASKING = ("trial", "trial_prompts", "rates", "losses")
#: Forms of the loss that `--losses` takes -> what they set.
LOSSES = {
    "full": {"loss_support": "full"},
    "sampled": {"loss_support": "sampled"},
    "renormalize": {"loss_support": "student", "loss_tail": "renormalize"},
    "bucket": {"loss_support": "student", "loss_tail": "bucket"},
    "sample": {"loss_support": "student", "loss_tail": "sample"},
    "drop": {"loss_support": "student", "loss_tail": "drop"},
}
STYLES = {"works": "green", "harms": "bold red", "unclear": "yellow"}
TITLES = {
    "score": "score",
    "divergence": "the run's divergence, nats a token",
    "reverse_kl": "reverse KL, nats a token",
    "forward_kl": "forward KL, nats a token",
    "outside": "teacher's mass outside the student's TopK",
    "entropy": "student's entropy, nats",
    "teacher_text": "NLL of the teacher's answers, nats a token",
    "length": "tokens of an answer",
    "repetition": "share of repeated 3-grams",
}


def variants(flags: argparse.Namespace) -> list[dict[str, str]]:
    """The runs to try: as configured, or one for each rate and each form of the loss; none with `--no-trial`.

    >>> given = {"trial": 5, "no_trial": False, "trial_prompts": None, "losses": ""}
    >>> variants(argparse.Namespace(rates="1e-6,2e-6", **given))
    [{'learning_rate': '1e-6'}, {'learning_rate': '2e-6'}]

    Raises:
        ValueError: a trial that is too small, a rate that is not a number above 0, an unknown form of the loss, or
            one of these, or a trial, beside `--no-trial`.
    """
    for name, least in (("trial", 1), ("trial_prompts", 2)):
        value = getattr(flags, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be >= {least}, got {value}. --no-trial leaves it out.")
    if flags.no_trial and is_asked(flags):
        name = next(name for name in ASKING if getattr(flags, name))
        raise ValueError(f"--{name.replace('_', '-')} asks for a trial, and --no-trial leaves it out. Drop one.")
    if flags.no_trial:
        return []
    rates, losses = ([x.strip() for x in text.split(",") if x.strip()] for text in (flags.rates, flags.losses))
    for rate in rates:
        if not is_positive(rate):
            raise ValueError(f"--rates takes numbers above 0, e.g. 1e-6,2e-6,5e-6; got {rate!r}.")
    for loss in losses:
        if loss not in LOSSES:
            raise ValueError(f"--losses takes {', '.join(LOSSES)}; got {loss!r}.")
    by_rate = [{"learning_rate": rate} for rate in rates] or [{}]
    return [rate | LOSSES.get(loss, {}) for loss in losses or [""] for rate in by_rate]


def is_asked(flags: argparse.Namespace) -> bool:
    """Does the command line ask for a trial?"""
    return any(getattr(flags, name) for name in ASKING)


def is_positive(text: str) -> bool:
    """Is it a finite number above 0?"""
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def named(options: Mapping[str, str]) -> str:
    """The fields that a trial sets and their values, as one line; without any it is the run as configured."""
    return ", ".join(f"{name}: {value}" for name, value in options.items()) or "the run as configured"


def cost(flags: argparse.Namespace, figures: Mapping[str, Any]) -> str:
    """What a trial does, and about how long it takes by the figures of the check `cost`, where there are some.

    Of a served teacher, which may cost money, also how often it is asked.
    """
    steps, prompts = flags.trial or STEPS, flags.trial_prompts or PROMPTS
    said = f"{steps} optimizer steps, and answers to {prompts} held-out prompts, three times"
    if "cost" not in figures:
        return said
    step = figures["cost"]
    if step["is_served"]:
        said += f", so that the teacher's server scores {steps * step['completions'] + 3 * prompts} sequences"
    looks = 3 * prompts / step["completions"]
    seconds = steps * step["total"] + looks * (step["generation"] + step["teacher"] + step["student"])
    return f"{said}; about {seconds:.0f} s in one process, and the time to start"


def outcome(found: dict[str, Any]) -> dict[str, Any]:
    """What came out of a trial with its changes and its word."""
    seen = changes(found["before"], found["after"])
    word, more = judged(seen, changes(found["halfway"], found["after"]) if found["halfway"] else None), None
    if word == "unclear" and "divergence" in seen:
        more = steps_to_decide(seen["divergence"].change, found["steps"])
    figures = {name: {part: list(value) for part, value in change._asdict().items()} for name, change in seen.items()}
    return found | {"verdict": word, "changes": figures, "steps_to_decide": more}


def show_trials(trials: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a table for each trial, and its word."""
    for trial in trials:
        console.print(f"\nTrial of {trial['steps']} steps, {named(trial['options'])}", style="bold")
        grid = Table(box=None, pad_edge=False)
        for title in ("on held-out prompts", "before", "after", "change (95 %)"):
            grid.add_column(title, justify="left" if title.startswith("on") else "right")
        for name, title in TITLES.items():
            if name in trial["changes"]:
                change = {part: Interval(*value) for part, value in trial["changes"][name].items()}
                moved = f"{change['change'].low:+.3f} to {change['change'].high:+.3f}"
                grid.add_row(title, f"{change['before'].value:.3f}", f"{change['after'].value:.3f}", moved)
        console.print(grid)
        console.print(Text.assemble((trial["verdict"], STYLES[trial["verdict"]]), f": {sentence(trial)}"))
    if len(trials) > 1:
        console.print(f"\n{recommended(trials)}")


def sentence(trial: dict[str, Any]) -> str:
    """What a word means here."""
    better, runs = ENDED_BETTER[trial["verdict"]]
    measured = (
        f" In our study (toy tasks, 20 steps) {better} of {runs} runs with this word ended better than they began."
    )
    scored = "score" in trial["changes"]
    judged_by = "score and divergence" if scored else "the divergence alone decides, since no judge scores answers"
    if trial["verdict"] == "works":
        said = f"on prompts that it was not trained on the student has moved towards its teacher ({judged_by})."
        return said + measured
    if trial["verdict"] == "harms":
        said = f"on prompts that it was not trained on the student is worse than before ({judged_by})."
        return f"{said}{measured} Try a smaller rate: --rates."
    more = trial["steps_to_decide"]
    how = f"--trial {more} would decide it, if it goes on so" if more else "it has not moved"
    return f"what has changed may be chance ({judged_by}); {how}.{measured} More --trial-prompts narrow the intervals."


def recommended(trials: Sequence[dict[str, Any]]) -> str:
    """The variant to take: of those that work the one with the highest score, or the least divergence."""
    good = [trial for trial in trials if trial["verdict"] == "works"]
    if not good:
        return "None of these works within the trial. Try smaller rates, or more steps."
    scored = all("score" in trial["changes"] for trial in good)
    name, sign = ("score", 1) if scored else ("divergence", -1)
    best = max(good, key=lambda trial: sign * trial["changes"][name]["after"][0])
    return f"Take {named(best['options'])}."
