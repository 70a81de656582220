"""Sample completions for the page: all of a short run, evenly chosen steps and cut texts of a long one."""

from typing import Any

import numpy as np

from .reading import is_number


# The samples of all runs stay below this many characters of JSON.
BUDGET = 1_800_000
MAX_TOKENS, LAST_TOKENS = 700, 200
MAX_TEXT = 12_000


def page_samples(runs: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The samples of each run as the page holds them, below `BUDGET` together.

    Of a run with too many the steps are thinned out evenly; the first and the last stay.
    """
    share = BUDGET // max(len(runs), 1)
    return [within(share, [entry for line in lines if (entry := shortened(line))]) for lines in runs]


def within(budget: int, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of evenly chosen steps whose sizes stay below `budget`."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        by_step.setdefault(entry["step"], []).append(entry)
    steps, sizes = sorted(by_step), {step: sum(map(size, found)) for step, found in by_step.items()}
    keep = steps
    while len(keep) > 1 and (total := sum(sizes[step] for step in keep)) > budget:
        # What fits were all of one size, and at least one less than before.
        places = np.linspace(0, len(steps) - 1, max(1, min(len(keep) - 1, int(len(keep) * budget / total))))
        keep = [steps[i] for i in sorted(set(places.round().astype(int).tolist()))]
    return [entry for step in keep for entry in by_step[step]]


def size(entry: dict[str, Any]) -> int:
    """About how many characters of JSON an entry takes."""
    texts = [entry["prompt"], entry["teacher_prompt"] or "", *entry["tokens"]]
    return sum(len(text) + 3 for text in texts) + 7 * len(entry["d"]) + 7 * len(entry["r"]) + 100


def shortened(line: dict[str, Any]) -> dict[str, Any] | None:
    """A line as the page holds it, or None where it has no tokens.

    A long completion keeps its beginning and its end: `cut` is the place of the gap and its length. Means are of the
    whole completion.
    """
    tokens = line.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        return None
    divergence, log_ratio = (one_each(line.get(key), len(tokens)) for key in ("divergence", "log_ratio"))
    counted = [value for value in divergence if value is not None]
    first = MAX_TOKENS - LAST_TOKENS
    gap = len(tokens) - MAX_TOKENS

    def chosen(values: list[Any]) -> list[Any]:
        return values if gap <= 0 else values[:first] + values[-LAST_TOKENS:]

    return {
        "step": line["step"],
        "prompt": text(line.get("prompt")),
        "teacher_prompt": text(line["teacher_prompt"]) if line.get("teacher_prompt") else None,
        "teacher": text(line.get("teacher")),
        "count": len(tokens),
        "counted": len(counted),
        "mean": short(sum(counted) / len(counted)) if counted else None,
        "tokens": [text(token) for token in chosen(tokens)],
        "d": [short(value) for value in chosen(divergence)],
        "r": [short(value) for value in chosen(log_ratio)],
        "cut": None if gap <= 0 else [first, gap],
    }


def one_each(values: Any, count: int) -> list[float | None]:
    """A number or None for each of `count` tokens.

    >>> one_each([0.5, None, "x"], 4)
    [0.5, None, None, None]
    """
    values = values[:count] if isinstance(values, list) else []
    return [value if is_number(value) else None for value in values] + [None] * (count - len(values))


def short(value: float | None, digits: int = 3) -> float | None:
    """A value rounded to so many significant digits, so that it is short in JSON; None stays None."""
    return None if value is None else float(f"{value:.{digits}g}")


def text(value: Any) -> str:
    """A text, its middle left out where it is very long."""
    value = value if isinstance(value, str) else "" if value is None else str(value)
    if len(value) <= MAX_TEXT:
        return value
    half, gone = MAX_TEXT // 2, len(value) - MAX_TEXT
    return f"{value[:half]}\n[... {gone:,} characters left out of this page ...]\n{value[-half:]}"


def full_colour(runs: list[list[dict[str, Any]]], key: str) -> float:
    """The magnitude at which a token has the full colour: the 98th percentile over all tokens, at least 0.5 nats.

    One scale for all steps and runs, so that a page turned to a later step is seen to pale.
    """
    values = [abs(value) for lines in runs for line in lines for value in line[key] if value is not None]
    return max(0.5, short(float(np.percentile(values, 98)), 2)) if values else 1.0
