"""The figures of a plan, and their tables."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from .advice import advice
from .sizing import GIB, RESERVE, estimate, peak_moment, total, verdict
from .workload import Engine, Workload


NOT_COUNTED = (
    "fragmentation, NCCL's buffers, temporaries of the optimizer step, images, reward models, a vLLM server on the "
    "same GPU"
)


def size(work: Workload, engine: Engine, engines: list[Engine]) -> dict[str, Any]:
    """All figures of a plan, in bytes: those of `engine`, and the totals of all `engines`."""
    parts = estimate(work, engine)
    peak = peak_moment(parts)
    return {
        **summary(work, engine),
        "gpu_memory": work.gpu_memory,
        "reserve": RESERVE,
        "student_parameters": work.student.parameters,
        "trained_parameters": work.trained_parameters,
        "teacher_parameters": work.scorer.parameters if work.has_own_teacher else 0,
        "prompt_length": work.prompt_length,
        "teacher_prompt_length": work.teacher_prompt_length,
        "peak": peak,
        "components": [{**asdict(part), "at_peak": peak in part.moments} for part in parts],
        "dense_log_probs": work.dense_log_probs,
        "engines": [summary(work, other) for other in engines],
        "advice": [asdict(line) for line in advice(work, engine, engines)],
        "not_counted": NOT_COUNTED,
    }


def summary(work: Workload, engine: Engine) -> dict[str, Any]:
    """What the table of engines says of one."""
    needed = total(estimate(work, engine))
    return {
        "engine": engine.title,
        "accelerate_config": engine.name,
        "gpus": engine.gpus,
        "total": needed,
        "verdict": verdict(needed, work.gpu_memory),
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures: components, total, engines, advice, what is not counted."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(heading(figures))
    console.print(component_table(figures))
    console.print(conclusion(figures))
    console.print(engine_table(figures["engines"]))
    if figures["advice"]:
        console.print("\nOne change at a time, the largest saving first:")
    for line in figures["advice"]:
        console.print(f"  {line['change']} saves {gib(line['saves'])} GiB: {gib(line['total'])}, {line['verdict']}")


def heading(figures: dict[str, Any]) -> str:
    """What is sized."""
    spread = f" on {figures['gpus']} GPUs" if figures["gpus"] > 1 else ""
    teacher = f"teacher {figures['teacher_parameters']:,}" if figures["teacher_parameters"] else "its own teacher"
    return (
        f"Memory on each GPU, {figures['engine']}{spread}: an estimate, not a measurement.\n"
        f"Student {figures['student_parameters']:,} parameters, {figures['trained_parameters']:,} trained; {teacher}; "
        f"prompts of {figures['prompt_length']}, the teacher's of {figures['teacher_prompt_length']} tokens.\n"
    )


def conclusion(figures: dict[str, Any]) -> str:
    """Does it fit, and what is not in the total?"""
    memory, reserve = figures["gpu_memory"], figures["reserve"]
    return (
        f"\n{figures['verdict'].capitalize()}: {gib(figures['total'])} of {gib(memory)} GiB at the peak of a step "
        f"({figures['peak']}); in brackets what is not there then.\n"
        f"`fits` keeps {reserve:.0%} free, {gib((1 - reserve) * memory)} GiB at most, for what is not counted: "
        f"{figures['not_counted']}.\n"
        "A loss with [tokens, vocabulary] log-probabilities of both models in float32 would add "
        f"{gib(figures['dense_log_probs'])} GiB; they are never built.\n"
    )


def component_table(figures: dict[str, Any]) -> Table:
    """One row for each component, and the total of those at the peak."""
    table = Table(box=None, pad_edge=False)
    table.add_column("component", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("computed as")
    for part in figures["components"]:
        amount = gib(part["bytes"])
        table.add_row(part["name"], amount if part["at_peak"] else f"({amount})", part["how"])
    table.add_row("total", gib(figures["total"]), "")
    return table


def engine_table(rows: list[dict[str, Any]]) -> Table:
    """The same recipe under every engine."""
    table = Table(box=None, pad_edge=False)
    table.add_column("--accelerate_config", no_wrap=True)
    table.add_column("engine", no_wrap=True)
    table.add_column("GPUs", justify="right")
    table.add_column("GiB on each", justify="right")
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        cells = (row["accelerate_config"], row["engine"], str(row["gpus"]), gib(row["total"]), row["verdict"])
        table.add_row(*cells)
    return table


def gib(amount: float) -> str:
    """Bytes in GiB.

    >>> gib(3 * 2**29)
    '1.50'
    """
    return f"{amount / GIB:,.2f}"
