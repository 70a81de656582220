"""The figures of a plan, as `opd-trl plan` prints them and writes them as JSON."""

from dataclasses import asdict
from typing import Any

from .advice import advice
from .component import RESERVE, gib, peak_moment, total, verdict
from .sizing import estimate
from .workload import Engine, Teacher, Workload, stored_bytes, teacher_flag


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
    """Sentences on what the figures take a served teacher for, and what is not counted of it."""
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
    """What the table of engines says of one engine: its total in bytes, and whether that fits."""
    needed = total(estimate(work, engine))
    return {
        "engine": engine.title,
        "accelerate_config": engine.name,
        "gpus": engine.gpus,
        "total": needed,
        "verdict": verdict(needed, work.gpu_memory),
    }
