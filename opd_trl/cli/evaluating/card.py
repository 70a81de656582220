"""The result card: what `opd-trl eval` prints."""

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table


def show(result: dict[str, Any], console: Console) -> None:
    """Print a result: who, under which protocol, figures, differences, warnings."""
    console.print(Panel(heading(result), title=f"opd-trl eval: {result['identity']['suite']}", expand=False))
    console.print(figure_table(result))
    generation = result["generation"]
    console.print(
        f"\nanswers {generation['samples']}   truncated {generation['truncated']:.1%}   tokens "
        f"{generation['mean_tokens']:.0f} in the mean, {generation['median_tokens']:.0f} in the median, "
        f"{generation['max_tokens']} at most"
    )
    left_out = {f"left out of {part}": counts for part, counts in result["dropped"].items()}
    for title, counts in {"not right": result["counts"], **left_out}.items():
        if counts:
            console.print(f"{title}: " + ", ".join(f"{count} {reason}" for reason, count in counts.items()))
    for name, value in result["also"].items():
        console.print(f"{name} {value:.4g}")
    for comparison in result["comparisons"]:
        console.print()
        console.print(difference_table(comparison))
    for warning in result["warnings"]:
        console.print(f"\nWarning: {warning}", style="yellow")
    console.print(f"\nWrote {result['folder']}/result.json and samples.jsonl.")


def heading(result: dict[str, Any]) -> str:
    """Model, data, protocol, machine."""
    identity, conditions = result["identity"], result["conditions"]
    lines = [f"model     {name_of(identity)}"]
    for part, source in result["sources"].items():
        problems = identity["data"][part]
        lines.append(f"{part:<10}{source}, {problems['problems']} problems ({problems['hash']})")
    if identity.get("rules"):
        lines.append(f"rules     {', '.join(identity['rules'])}")
    lines.append(f"protocol  {result['protocol_name']} ({result['protocol_hash']}): {in_words(identity['protocol'])}")
    lines.append(f"made      {conditions['date']}, {conditions['machine']}, commit {conditions['git_commit']}")
    return "\n".join(lines)


def name_of(identity: dict[str, Any]) -> str:
    """Who was measured."""
    parts = [identity["model"]["path"]]
    if identity.get("adapter"):
        parts.append(f"adapter {identity['adapter']['path']}")
    if identity.get("context"):
        parts.append(f"reading {identity['context']['path']}")
    return ", ".join(parts)


def in_words(protocol: dict[str, Any]) -> str:
    """The settings of a protocol that decide most.

    >>> in_words({"temperature": 0.6, "top_p": 0.95, "top_k": 0, "max_new_tokens": 512, "n": 2, "seeds": [0, 1],
    ...           "chat_template_kwargs": {"enable_thinking": False}})
    'temperature 0.6, top-p 0.95, at most 512 tokens, 2 samples x seeds 0, 1, enable_thinking=False'
    """
    kwargs = "".join(f", {key}={value}" for key, value in protocol["chat_template_kwargs"].items())
    drawn = (
        f"temperature {protocol['temperature']:g}, top-p {protocol['top_p']:g}"
        if protocol["temperature"]
        else "greedy"
    )
    top_k = f", top-k {protocol['top_k']}" * bool(protocol["top_k"])
    seeds = ", ".join(map(str, protocol["seeds"]))
    samples = f"{protocol['n']} sample{'s' * (protocol['n'] > 1)} x seed{'s' * (len(protocol['seeds']) > 1)} {seeds}"
    return f"{drawn}{top_k}, at most {protocol['max_new_tokens']} tokens, {samples}{kwargs}"


def figure_table(result: dict[str, Any]) -> Table:
    """One row for each figure."""
    several = any("by_seed" in figure for figure in result["figures"].values())
    table = Table(box=None, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % over problems", no_wrap=True)
    if several:
        table.add_column("and over seeds", no_wrap=True)
        table.add_column("each seed", no_wrap=True)
    table.add_column("what")
    for name, figure in result["figures"].items():
        unit = figure["unit"]
        cells = [name, number(figure["value"], unit), between(figure["low"], figure["high"], unit)]
        if several:
            seeds = "by_seed" in figure
            cells.append(between(figure["low_over_seeds"], figure["high_over_seeds"], unit) if seeds else "")
            cells.append(" ".join(number(value, unit) for value in figure["by_seed"]) if seeds else "")
        table.add_row(*cells, figure["what"])
    return table


def difference_table(comparison: dict[str, Any]) -> Table:
    """This evaluation less another one, problem by problem."""
    table = Table(title=f"against {name_of(comparison['who'])} ({comparison['folder']})", box=None, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    for column in ("there", "difference", "95 %", "problems up / down"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in comparison.items():
        if name in ("folder", "who"):
            continue
        unit = row["unit"]
        clear = "" if row["low"] <= 0 <= row["high"] else " *"
        cells = (number(row["base"], unit), number(row["difference"], unit, sign=True))
        interval = between(row["low"], row["high"], unit, sign=True) + clear
        table.add_row(name, *cells, interval, f"{row['rose']} / {row['fell']}")
    table.caption = "* the interval leaves out zero"
    return table


def number(value: float, unit: str, *, sign: bool = False) -> str:
    """A value as it is printed.

    >>> number(0.5, "%"), number(-0.021, "%", sign=True), number(1.25, "")
    ('50.0', '-2.1', '1.2500')
    """
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f}" if unit == "%" else f"{value:{plus}.4f}"


def between(low: float, high: float, unit: str, *, sign: bool = False) -> str:
    """An interval as it is printed."""
    return f"{number(low, unit, sign=sign)} to {number(high, unit, sign=sign)}"
