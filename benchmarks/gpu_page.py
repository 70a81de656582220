"""The tables of gpu.py: on the screen after a run, and on a page of the documentation."""

from collections.abc import Iterable
from itertools import groupby
from statistics import fmean

from gpu_lines import PHASES, STAGES, TRL, Line
from internalise_table import MEASURES
from measure import conditions_of

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
        for stage in STAGES:
            if own := [line for line in lines[stage] if line["machine"] == machine]:
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
    by_group = {group: [line for line in lines if line.get("group") == group] for group in groups_of(lines)}
    for group, title in (("main", ""), ("long", ""), ("liger", ", Liger")):
        for tokens, own in groupby(by_group.get(group, []), key=lambda line: line["tokens"]):
            yield f"**{tokens} tokens{title}**\n\n" + markdown(loss_rows(list(own), ceiling))
    yield sweep(by_group.get("top_k", []), "Against K")
    yield sweep(by_group.get("loss_memory_mib", []), "Against loss_memory_mib")
    yield kernels(by_group.get("kernels", []))


def groups_of(lines: list[Line]) -> list[str]:
    return list(dict.fromkeys(line["group"] for line in lines if "group" in line))


def loss_rows(lines: list[Line], ceiling: Line | None) -> Iterable[dict[str, str]]:
    """One row a case; ratios to TRL's kernel in the same turns."""
    trl = next((line for line in lines if line["name"] == TRL and "seconds" in line), None)
    for line in lines:
        if "failed" in line:
            yield {"case": line["name"], "ms": line["failed"]}
            continue
        row = {"case": line["name"], "ms": milliseconds(line["seconds"]), "MiB": str(line["extra_mib"])}
        if trl:
            row["time / TRL's"] = f"{line['seconds']['median'] / trl['seconds']['median']:.2f}"
            row["MiB / TRL's"] = f"{line['extra_mib'] / max(1, trl['extra_mib']):.2f}"
        if line["flops"] and ceiling:
            floor = line["flops"] / ceiling["flops_per_second"]
            row["its products at the ceiling"] = f"{floor / line['seconds']['median']:.0%}"
        names = ("case", "ms", "time / TRL's", "MiB", "MiB / TRL's", "its products at the ceiling")
        yield {name: row[name] for name in names if name in row}


def milliseconds(seconds: dict[str, float]) -> str:
    """`12.3 (12.1 to 12.9)`."""
    median, low, high = (1000 * seconds[name] for name in ("median", "min", "max"))
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def sweep(lines: list[Line], title: str) -> str:
    """One row a loss, one column a value; names are `loss, value`."""
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        name, _, value = line["name"].rpartition(", ")
        shown = line["failed"] if "failed" in line else f"{1000 * line['seconds']['median']:.1f}"
        rows.setdefault(name, {"ms": name})[value] = shown
    return f"**{title}**\n\n" + markdown(rows.values()) if rows else ""


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
            yield f"**{title}**; seconds\n\n" + markdown(step_row(line, own) for line in own)


def step_row(line: Line, lines: list[Line]) -> dict[str, str]:
    """Seconds of a step with its spread, ratios, seconds by phase, memory."""
    if "failed" in line:
        return {"trainer": line["trainer"], "step": line["failed"]}
    pair = "SDFT" if line["trainer"].startswith(("SDFT", "OPSD")) else "Distillation"
    trl = next((x for x in lines if x["trainer"].startswith(pair) and "failed" not in x), None)
    seconds = line["seconds"]
    row = {
        "trainer": line["trainer"],
        "step": f"{seconds['median']:.2f} ({seconds['min']:.2f} to {seconds['max']:.2f})",
    }
    if trl:
        row["/ TRL's"] = f"{seconds['median'] / trl['seconds']['median']:.2f}"
        ratio = line["without_generation"]["median"] / trl["without_generation"]["median"]
        row["without generation / TRL's"] = f"{ratio:.2f}"
    row |= {phase: f"{line['phases'][phase]:.2f}" for phase in PHASES}
    row["peak, MiB"] = str(line["peak_mib"])
    if trl:
        row["peak / TRL's"] = f"{line['peak_mib'] / trl['peak_mib']:.2f}"
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
