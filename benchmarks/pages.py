"""The tables of loss.py, steps.py and gpu.py: on the screen after a run, and on a page of the documentation."""

from collections.abc import Iterable
from itertools import groupby
from statistics import fmean

from internalise_table import MEASURES
from lines import PHASES, Line, conditions_of
from loss import DENSE, TRL
from trainers import PAIRS

from opd_trl.reproduce.tables import markdown


NOTHING = "No GPU was at hand so far: there are no results."
TITLES = {
    "loss": "The loss step",
    "steps": "Whole optimizer steps",
    "memory": "What `opd-trl plan` says, and what is taken",
    "real": "A system prompt internalised, and mathematics",
}
CONDITIONS = ("machine", "date", "torch", "trl", "transformers", "liger-kernel", "commit", "command")
KERNELS_SHOWN, KERNEL_NAME = 4, 36


def page(lines: dict[str, list[Line]]) -> str:
    """All stages, machine by machine; stage -> lines."""
    machines = sorted({line["machine"] for found in lines.values() for line in found})
    parts = []
    for machine in machines:
        parts.append(f"## {machine}")
        for stage, found in lines.items():
            if own := [line for line in found if line["machine"] == machine]:
                parts += [f"### {TITLES[stage]}, {machine}", text(stage, own)]
    return "\n\n".join(parts) or NOTHING


def text(stage: str, lines: list[Line]) -> str:
    """The tables of a stage on one machine, and under which conditions they came about."""
    parts = {"loss": loss, "steps": steps, "memory": memory, "real": real}[stage](lines)
    return "\n\n".join(part.strip() for part in [*parts, conditions_of(lines, CONDITIONS)] if part.strip())


def loss(lines: list[Line]) -> Iterable[str]:
    """Ceilings, the main tables, both sweeps, the kernels."""
    ceiling = next((line for line in lines if line["case"] == "ceilings"), None)
    if ceiling:
        moved, rate = ceiling["bytes_per_second"] / 1e12, ceiling["flops_per_second"] / 1e12
        yield (
            f"Measured ceilings: a copy on the card moves {moved:.2f} TB/s, bytes read and written; a square bfloat16 "
            f"product runs at {rate:.0f} TFLOP/s."
        )
    by_group = {group: list(own) for group, own in groupby(sorted(lines, key=group_of), key=group_of)}
    for group, title in (("main", ""), ("long", ""), ("liger", ", Liger")):
        if own := by_group.get(group):
            yield f"**{own[0]['tokens']} tokens{title}**\n\n" + markdown(loss_row(line, own, ceiling) for line in own)
    for group, own in by_group.items():
        if group not in ("", "main", "long", "liger", "kernels"):
            yield sweep(own, f"Against {group}")
    yield kernels(by_group.get("kernels", []))


def group_of(line: Line) -> str:
    """Of cases that took turns."""
    return line.get("group", "")


def loss_row(line: Line, lines: list[Line], ceiling: Line | None) -> dict[str, str]:
    """The row of a case; ratios are to others in the same turns."""
    if "failed" in line:
        return {"case": line["name"], "ms": line["failed"]}
    trl, dense = ([other for other in lines if other["name"] == name and "seconds" in other] for name in (TRL, DENSE))
    row = {"case": line["name"], "ms": spread_text(line["seconds"], 1000, 1)}
    row |= {"time / TRL's": ratio(line, trl, "seconds"), "time / dense Top-20": ratio(line, dense, "seconds")}
    row |= {"MiB": str(line["extra_mib"]), "MiB / TRL's": ratio(line, trl, "extra_mib")}
    if line["flops"] and ceiling:
        floor = line["flops"] / ceiling["flops_per_second"]
        row["its products at the ceiling"] = f"{floor / line['seconds']['median']:.0%}"
    return row


def ratio(line: Line, others: list[Line], name: str) -> str:
    """Of a figure of two lines, or of its medians; empty where there is no other line."""
    found = (x[name]["median"] if isinstance(x[name], dict) else x[name] for x in (line, *others[:1]))
    return f"{next(found) / (next(found) or 1):.2f}" if others else ""


def spread_text(seconds: dict[str, float], factor: int, digits: int) -> str:
    """`12.3 (12.1 to 12.9)`."""
    median, low, high = (f"{factor * seconds[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def sweep(lines: list[Line], title: str) -> str:
    """One row a loss, one column a value with its ratio to the first one; names are `loss, value`."""
    rows: dict[str, dict[str, str]] = {}
    first: dict[str, list[Line]] = {}
    for line in lines:
        name, _, value = line["name"].rpartition(", ")
        row = rows.setdefault(name, {"ms (to the first)": name})
        if "failed" in line:
            row[value] = line["failed"]
            continue
        to_first = ratio(line, first.setdefault(name, [line]), "seconds")
        row[value] = f"{1000 * line['seconds']['median']:.1f} ({to_first})"
    return f"**{title}**\n\n" + markdown(rows.values())


def kernels(lines: list[Line]) -> str:
    """The most expensive ones of each case: share of the time, calls."""
    rows = []
    for line in lines:
        found = [
            f"{kernel['share']:.0%} {kernel['name'][:KERNEL_NAME]} x{kernel['calls']}"
            for kernel in line.get("kernels", [])[:KERNELS_SHOWN]
        ]
        rows.append({"case": line["name"], "share of time, kernel, calls": "; ".join(found) or line.get("failed", "")})
    return "**Most expensive kernels** (ten of each in the file)\n\n" + markdown(rows) if rows else ""


def steps(lines: list[Line]) -> Iterable[str]:
    """One table for each kind of lengths; ratios to the TRL trainer of the same pair."""
    for lengths, title in (
        ("equal", "Equal lengths, generated with `transformers`"),
        ("log-normal", "Log-normal lengths, the same for all; completions stand in for generation"),
    ):
        own = [line for line in lines if line["lengths"] == lengths]
        if own:
            yield f"**{title}**; seconds\n\n{step_table(own)}"


def step_table(lines: list[Line]) -> str:
    """One row a trainer."""
    return markdown(step_row(line, lines) for line in lines)


def step_row(line: Line, lines: list[Line]) -> dict[str, str]:
    """Seconds of a step with its spread, ratios to TRL's (where it is left out, to the first line), memory."""
    row = {"trainer": line["trainer"]} | ({"context": str(line["context"])} if "context" in line else {})
    if "failed" in line:
        return row | {"step": line["failed"]}
    trl = next(names[0] for names in PAIRS.values() if line["trainer"] in names)
    whose = "TRL's" if any(x["trainer"] == trl for x in lines) else "first"
    others = [x for x in lines if x["trainer"] == trl and x.get("context") == line.get("context")]
    others = [x for x in (others if whose == "TRL's" else lines) if "failed" not in x]
    row["step"] = spread_text(line["seconds"], 1, 2)
    titles = {"seconds": "", "without_generation": "without generation ", "loss_and_backward": "loss + backward "}
    row |= {f"{title}/ {whose}": ratio(line, others, name) for name, title in titles.items()}
    row |= {phase: f"{line['phases'][phase]:.2f}" for phase in PHASES}
    for title, of, who in (("", "", "student"), ("teacher's ", "_of_teacher", "teacher")):
        if line.get(f"real_tokens{of}"):
            row[f"{title}computed / real"] = f"{line[f'computed_by_{who}'] / line[f'real_tokens{of}']:.2f}"
    for title, name in (("peak, MiB", "peak_mib"), ("loss + backward, MiB", "extra_mib")):
        row |= {title: str(int(line[name])), f"{title.partition(',')[0]}, MiB / {whose}": ratio(line, others, name)}
    return row


def memory(lines: list[Line]) -> Iterable[str]:
    """Peaks beside plan's, and the largest micro-batches."""
    peaks = [line for line in lines if "search" not in line]
    if peaks:
        yield "**Peak of torch's allocations and of plan, without the context of CUDA**\n\n" + markdown(
            {
                "run": line["case"].removeprefix("peak: "),
                "prompts": str(line["prompts"]),
                "peak, MiB": str(line.get("peak_mib", line.get("failed"))),
                "plan, MiB": str(line["plan_mib"]),
                "plan / peak": f"{line['plan_mib'] / line['peak_mib']:.2f}" if "peak_mib" in line else "",
                "plan's largest moment": line["plan_peak"],
            }
            for line in peaks
        )
    searches = list(dict.fromkeys(line["search"] for line in lines if "search" in line))
    if searches:
        yield "**Largest micro-batch, in prompts**\n\n" + markdown(largest(name, lines) for name in searches)


def largest(name: str, lines: list[Line]) -> dict[str, str]:
    """What fitted, what did not, and what plan calls `fits` and `tight`."""
    own = [line for line in lines if line.get("search") == name]
    fitting = [line["prompts"] for line in own if "failed" not in line]
    failing = [line["prompts"] for line in own if "failed" in line]
    return {
        "run": name.removeprefix("largest: "),
        "fits": str(max(fitting, default=0)),
        "does not fit": str(min(failing)) if failing else "not seen",
        "plan says fits": str(own[0]["plan_fits"]),
        "plan says tight": str(own[0]["plan_tight"]),
    }


def real(lines: list[Line]) -> Iterable[str]:
    """Means over seeds of the cells; then mathematics."""
    cells = [line for line in lines if "rule" in line]
    if cells:
        yield markdown(cell_row(name, list(own)) for name, own in groupby(sorted(cells, key=kind_of), key=kind_of))
    rows = [{"case": line["case"], "result": math_result(line)} for line in lines if "rule" not in line]
    yield markdown(rows)


def kind_of(line: Line) -> tuple[str, str]:
    return line["rule"], line["objective"]


def cell_row(kind: tuple[str, str], lines: list[Line]) -> dict[str, str]:
    """Shares of answers that follow the rule, and that show it elsewhere."""
    seeds = {"rule": kind[0], "objective": kind[1], "seeds": str(len(lines))}
    shares = {title: fmean(fmean(line[name]) for line in lines) for name, title in MEASURES.items()}
    return seeds | {title: f"{share:.2f}" for title, share in shares.items()}


def math_result(line: Line) -> str:
    """Its figures, or the steps that it took."""
    if "figures" not in line:
        return f"{line['steps']} steps in {line['wall_seconds']:.0f} s"
    return "; ".join(
        f"{name} {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        for name, figure in line["figures"].items()
    )
