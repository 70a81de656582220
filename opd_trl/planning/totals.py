"""The figures of a plan, as `opd-trl plan` prints them and writes them as JSON, with advice on what to change.

Every figure of the advice comes from sizing the changed run.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from .component import GIB, RESERVE, gib, peak_moment, total, verdict
from .sizing import estimate
from .workload import FOUR_BITS, Engine, Teacher, Workload, stored_bytes, teacher_flag


WORTH_SAYING = 0.05 * GIB
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
        "notes": [note for teacher in work.teachers_served for note in notes(teacher, work)],
    }


def notes(teacher: Teacher, work: Workload) -> list[str]:
    """Sentences on what the figures take a served teacher for, what travels, and what is not counted of it."""
    served_top_k = work.served_top_k
    who = f"The served teacher {teacher.name}".strip()
    if teacher.size is None:
        kind = "" if served_top_k is None else f"{who} is counted as vLLM's completions endpoint, by its TopK alone. "
        needed = "which this run needs" if served_top_k is None else "in its place"
        return [
            f"{kind}NOT COUNTED: the LM head and the hidden states of {who[0].lower() + who[1:]} that opd-trl "
            f"serve-teacher or vLLM's pooling runner, {needed}, leaves here. Give --teacher-config "
            f"{teacher_flag(teacher.name)} to count them."
        ]
    found = [
        f"{who} is counted as opd-trl serve-teacher or vLLM's pooling runner: its LM head and its hidden states lie "
        f"here. {travels(teacher, work)}"
    ]
    if served_top_k is not None:
        found[0] += " vLLM's completions endpoint would leave its TopK alone."
    if teacher.local_copy is not None:
        size = gib(stored_bytes(teacher.size, teacher.size.width))
        found.append(
            f"{teacher.local_copy} is a local copy for the parity check at start, {size} GiB in the first process "
            "before the student is loaded. It is not resident during training and not counted. Of vLLM's pooling "
            "runner its LM head alone is read, by every process."
        )
    return found


def travels(teacher: Teacher, work: Workload) -> str:
    """What hidden states cost on the wire, of one completion of full length."""
    prompt, completion, row = work.teacher_prompt_length, work.completion_length, teacher.size.hidden_size
    row *= teacher.size.width
    return (
        f"A completion of {completion:,} tokens behind {prompt:,} of prompt takes {completion * row / 2**20:,.1f} MiB "
        f"on the wire from the first ({row:,} B a token), {(prompt + completion) * row / 2**20:,.1f} MiB from the "
        "second, which sends the prompt's states too."
    )


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


@dataclass(frozen=True)
class Advice:
    """A change, the bytes that it saves on each GPU, the bytes and the verdict after it."""

    change: str
    saves: float
    total: float
    verdict: str


def advice(work: Workload, engine: Engine, engines: list[Engine]) -> list[Advice]:
    """The changes that save memory, largest first; `engines` are those to compare with."""
    before = total(estimate(work, engine))
    found = []
    for change, changed_work, changed_engine in changes(work, engine, engines):
        after = total(estimate(changed_work, changed_engine))
        found.append(Advice(change, before - after, after, verdict(after, work.gpu_memory)))
    return sorted((a for a in found if a.saves >= WORTH_SAYING), key=lambda a: a.saves, reverse=True)


def changes(work: Workload, engine: Engine, engines: list[Engine]) -> Iterator[tuple[str, Workload, Engine]]:
    """Every single change that could save memory: what to write, and the workload and engine after it."""
    for other in engines:
        offloads = work.teacher_offload and work.teachers_here  # a sharded teacher is not offloaded
        if 0 < other.stage < (3 if offloads else 4):
            yield f"--accelerate_config {other.name}", work, other
    if engine.deepspeed:
        yield "--offload_optimizer_device cpu", work, replace(engine, offload_optimizer=True)
    kinds = (model_changes, teacher_changes, batch_changes, generation_changes)
    for change, fields in (found for kind in kinds for found in kind(work)):
        yield change, replace(work, **fields), engine


def model_changes(work: Workload) -> Iterator[tuple[str, dict]]:
    """Changes of what is trained, and of the dtype of frozen weights."""
    if not work.use_peft and work.adapter_parameters is not None:
        yield "use_peft: true", {"use_peft": True}
    if work.use_peft:
        yield "dtype: bfloat16", {"student": replace(work.student, width=2)}
        if work.student.linear_bits is None and work.device == "cuda":
            yield "load_in_4bit: true", {"student": replace(work.student, linear_bits=FOUR_BITS)}
    if work.reference_model:
        yield "beta: 0.0", {"reference_model": False}


def teacher_changes(work: Workload) -> Iterator[tuple[str, dict]]:
    """Changes of where teachers with weights of their own lie."""
    if work.teachers:
        halved = (replace(x, size=replace(x.size, width=2)) for x in work.teachers_here)
        yield "teacher_model_init_kwargs: {dtype: bfloat16}", {"teachers": (*halved, *work.teachers_served)}
        field = "teachers: URLs" if work.teachers[0].name else "teacher_server_url: that"
        served = tuple(replace(teacher, served=True) for teacher in work.teachers)
        yield f"{field} of opd-trl serve-teacher, on GPUs of its own", {"teachers": served}
    if work.teacher_kind != "ema" and not work.teacher_offload:
        yield "teacher_offload: cpu", {"teacher_offload": True}
    if work.teacher_offload or work.teacher_batch_size is not None:
        yield "teacher_batch_size: 1", {"teacher_batch_size": 1}


def batch_changes(work: Workload) -> Iterator[tuple[str, dict]]:
    """Changes of how much goes through the model at a time."""
    if not work.gradient_checkpointing:
        yield "gradient_checkpointing: true", {"gradient_checkpointing": True}
    batch, length = work.batch_size, work.completion_length
    if work.micro_batch_tokens is not None:
        least = max(work.micro_batch_tokens // 2, work.prompt_length + length)
        yield f"micro_batch_tokens {work.micro_batch_tokens} -> {least}", {"micro_batch_tokens": least}
    elif batch > 1:
        half = batch // 2
        change = f"per_device_train_batch_size {batch} -> {half}, gradient_accumulation_steps x {batch // half}"
        yield change, {"batch_size": half}
    yield f"max_completion_length {length} -> {length // 2}", {"completion_length": length // 2}
    yield "loss_memory_mib: 256", {"loss_memory_mib": 256}


def generation_changes(work: Workload) -> Iterator[tuple[str, dict]]:
    """Changes of where completions come from and how many are generated at a time."""
    if work.generation == "colocate":
        yield "vllm_enable_sleep_mode: true", {"vllm_sleeps": True}
        yield "vllm_mode: server, on GPUs of its own", {"generation": "server"}
    steps = work.generation_batch_size // work.batch_size
    if steps > 1 and (work.generation == "transformers" or work.teachers_ahead):
        yield (
            f"steps_per_generation {steps} -> {steps // 2}",
            {"generation_batch_size": work.batch_size * (steps // 2)},
        )
    if work.generation == "transformers":
        yield "ds3_gather_for_generation: false", {"gather_for_generation": False}
