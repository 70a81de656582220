"""The figures of a plan, and their tables."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from ...planning.advice import advice
from ...planning.component import GIB, RESERVE, peak_moment, total, verdict
from ...planning.inputs import teacher_flag
from ...planning.sizing import estimate
from ...planning.workload import Engine, Teacher, Workload, stored_bytes


NOT_COUNTED = (
    "fragmentation, NCCL's buffers, temporaries of the optimizer step, images, reward models, a vLLM server on the "
    "same GPU"
)


def size(work: Workload, engine: Engine, engines: list[Engine]) -> dict[str, Any]:
    """All figures of a plan, in bytes: those of `engine`, and the totals of all `engines`."""
    parts, separate = estimate(work, engine), work.teachers or work.teachers_here
    peak = peak_moment(parts)
    return {
        **summary(work, engine),
        "gpu_memory": work.gpu_memory,
        "reserve": RESERVE,
        "student_parameters": work.student.parameters,
        "trained_parameters": work.trained_parameters,
        "teacher_parameters": sum(teacher.size.parameters for teacher in work.teachers_here),
        "teachers": [
            {"name": x.name, "parameters": x.size and x.size.parameters, "served": x.served} for x in separate
        ],
        "prompt_length": work.prompt_length,
        "teacher_prompt_length": work.teacher_prompt_length,
        "peak": peak,
        "components": [{**asdict(part), "at_peak": peak in part.moments} for part in parts],
        "dense_log_probs": work.dense_log_probs,
        "engines": [summary(work, other) for other in engines],
        "advice": [asdict(line) for line in advice(work, engine, engines)],
        "not_counted": NOT_COUNTED,
        "notes": [note for teacher in work.teachers_served for note in notes(teacher, work.served_top_k)],
    }


def notes(teacher: Teacher, served_top_k: int | None) -> list[str]:
    """What the figures take a served teacher for.

    Args:
        teacher: with or without known sizes.
        served_top_k: of the workload.
    """
    who = f"The served teacher {teacher.name}".strip()
    if teacher.size is None:
        kind = "" if served_top_k is None else f"{who} is counted as vLLM's completions endpoint, by its TopK alone. "
        needed = "which this loss_support needs" if served_top_k is None else "in its place"
        return [
            f"{kind}NOT COUNTED: the LM head and the hidden states of {who[0].lower() + who[1:]} that opd-trl "
            f"serve-teacher, {needed}, leaves here. Give --teacher-config {teacher_flag(teacher.name)} to count them."
        ]
    found = [f"{who} is counted as opd-trl serve-teacher: its LM head and its hidden states lie here."]
    if served_top_k is not None:
        found[0] += " vLLM's completions endpoint would leave its TopK alone."
    if teacher.local_copy is not None:
        size = gib(stored_bytes(teacher.size, teacher.size.width))
        found.append(
            f"{teacher.local_copy} is a local copy for the parity check at start, {size} GiB in the first process "
            "before the student is loaded. It is not resident during training and not counted."
        )
    return found


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
    for note in figures["notes"]:
        console.print(f"\n{note}")
    console.print(conclusion(figures))
    console.print(engine_table(figures["engines"]))
    if figures["advice"]:
        console.print("\nOne change at a time, the largest saving first:")
    for line in figures["advice"]:
        console.print(f"  {line['change']} saves {gib(line['saves'])} GiB: {gib(line['total'])}, {line['verdict']}")


def heading(figures: dict[str, Any]) -> str:
    """What is sized."""
    spread = f" on {figures['gpus']} GPUs" if figures["gpus"] > 1 else ""
    return (
        f"Memory on each GPU, {figures['engine']}{spread}: an estimate, not a measurement.\n"
        f"Student {figures['student_parameters']:,} parameters, {figures['trained_parameters']:,} trained; "
        f"{teachers_in_words(figures['teachers'])}; "
        f"prompts of {figures['prompt_length']}, the teacher's of {figures['teacher_prompt_length']} tokens.\n"
    )


def teachers_in_words(teachers: list[dict[str, Any]]) -> str:
    """Which teachers there are.

    >>> teachers_in_words([{"name": "math", "parameters": 1000, "served": False},
    ...                    {"name": "code", "parameters": None, "served": True}])
    'teachers math 1,000, code of unknown size behind HTTP'
    """
    if not teachers:
        return "its own teacher"
    words = [
        (x["name"], f"{x['parameters']:,}" if x["parameters"] else "of unknown size", "behind HTTP" * x["served"])
        for x in teachers
    ]
    return f"teacher{'s' * (len(words) > 1)} " + ", ".join(" ".join(filter(None, parts)) for parts in words)


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
