"""Which setting to change so that a run takes less memory: every figure comes from sizing the changed run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .component import GIB, total, verdict
from .sizing import estimate
from .workload import FOUR_BITS, Engine, Workload


WORTH_SAYING = 0.05 * GIB


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
    if batch > 1:
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
