"""The stage `steps` of gpu.py: whole optimizer steps of our trainers and TRL's, phase by phase.

Models of the shapes of Qwen3-0.6B (student) and Qwen3-1.7B (teacher) with random weights, in bfloat16. Two kinds of
lengths: `equal`, really generated; `log-normal`, where completions of drawn lengths stand in for generation, the same
for every trainer, so that these steps have no time of generation. Each case has a process of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_children import OUT_OF_MEMORY, ChildError, Send
from gpu_lines import PHASES
from gpu_models import FIRST_PLAIN_ID, prepare
from measure import resident_mib, spread
from trainers import PAIRS, Setup, build_trainer

from opd_trl.data.toy_task import END, PAD


SIZES = {
    "full": {"prompts": 8, "accumulation": 4, "equal": 128, "mean": 200, "longest": 1024, "rounds": 3},
    "small": {"prompts": 2, "accumulation": 1, "equal": 4, "mean": 4, "longest": 12, "rounds": 1},
}
# Characters, which are tokens here: before each question, and of the privileged context.
TEXTS = {"full": {"preface": 180, "context": 2000}, "small": {"preface": 10, "context": 40}}
LENGTHS = ("equal", "log-normal")
SPREAD = 1.0  # standard deviation of the logarithm of a length
# Seconds to leave for a case: start, models, steps.
CASE_SECONDS = {"equal": 50, "log-normal": 40}
TRAINERS = tuple(name for pair in PAIRS.values() for name in pair)
# TRL's and our defaults.
FIRST = ("DistillationTrainer", "OPDTrainer (default)", "SDFTTrainer, topk_logits", "OPSDTrainer (default)")


@dataclass(frozen=True)
class Task:
    """A trainer and what it is given.

    Attributes:
        lengths: `equal`, `log-normal`, or `longest` for completions that stand in and all have the longest length.
        limit_mib: memory of the process in place of the whole card's; on a CPU what its peak is compared with.
    """

    trainer: str
    setup: Setup
    lengths: str
    mean: int
    limit_mib: int | None = None


def run(children, results, *, size: str, device: str, home: Path, deadline) -> list[str]:
    """The stage: measure what has no line yet; return what failed, other than by running out of memory."""
    done = results.done()
    todo = [(lengths, name) for lengths, name in cases() if f"{lengths}: {name}" not in done]
    paths, failed = prepare(children, home / "models", size, device) if todo else {}, []
    for number, (lengths, name) in enumerate(todo):
        if not deadline.leaves(CASE_SECONDS[lengths]):
            continue
        case = f"{lengths}: {name}"
        task = task_of(name, lengths, size, device, paths, home)
        try:
            content = measured(children, task, name=f"steps-{number}", seconds=deadline.limit)
            results.add(case, lengths=lengths, trainer=name, **content)
        except ChildError as error:
            failed.append(f"{case}: {error}")
    return failed


def cases() -> list[tuple[str, str]]:
    """Lengths and trainers, the most important first."""
    rest = [name for name in TRAINERS if name not in FIRST]
    return [(lengths, name) for names in (FIRST, rest) for lengths in LENGTHS for name in names]


def measured(children, task: Task, **options: Any) -> dict[str, Any]:
    """What `measure` sends, or that it ran out of memory.

    Raises:
        ChildError: it failed otherwise.
    """
    try:
        (content,) = children.run(measure, task, **options)
    except ChildError as error:
        if str(error) != OUT_OF_MEMORY:
            raise
        return {"failed": OUT_OF_MEMORY}
    return content


def task_of(name: str, lengths: str, size: str, device: str, paths: dict[str, str], home: Path) -> Task:
    """The work of one case."""
    setting = SIZES[size]
    setup = Setup(
        **paths,
        output=home / "trainer",
        prompts=setting["prompts"],
        accumulation=setting["accumulation"],
        completion_tokens=setting["equal" if lengths == "equal" else "longest"],
        same_length=lengths == "equal",
        steps=setting["rounds"] + 1,
        device=device,
        dtype="bfloat16",
        **{name: "x" * length for name, length in TEXTS[size].items()},
    )
    return Task(name, setup, lengths, setting["mean"])


def measure(send: Send, task: Task) -> None:
    """In a child: train, send seconds and memory of the steps after the first, which warms up."""
    from gpu_phases import phases_of

    on_cuda = task.setup.device == "cuda"
    if on_cuda and task.limit_mib is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, task.limit_mib * 2**20 / total))
    trainer = build_trainer(task.trainer, task.setup)
    seen: dict[str, int] = {}
    watch_prompts(trainer, seen)
    generate = None if task.lengths == "equal" else stand_in(task)
    resident = start_of_memory(on_cuda)
    with phases_of(trainer, generate) as clock:
        trainer.train()
    peak = peak_memory(on_cuda)
    if not on_cuda and task.limit_mib is not None and peak - resident > task.limit_mib:
        raise torch.OutOfMemoryError(f"{peak - resident} MiB are more than {task.limit_mib}")
    steps = clock.steps[1:] or clock.steps
    seconds = [sum(step.values()) for step in steps]
    without = [sum(step.values()) - step["generation"] for step in steps]
    send(
        {
            "seconds": spread(seconds),
            "without_generation": spread(without),
            "phases": {phase: spread([step[phase] for step in steps])["median"] for phase in PHASES},
            "peak_mib": peak,
            "resident_mib": resident,
            **seen,
        }
    )


def start_of_memory(on_cuda: bool) -> int:
    """MiB that live before the first step; the peak counts from here."""
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() // 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mib("VmRSS")


def peak_memory(on_cuda: bool) -> int:
    """MiB of the largest moment: allocated on a card, resident on a CPU."""
    return torch.cuda.max_memory_allocated() // 2**20 if on_cuda else resident_mib("VmHWM")


def watch_prompts(trainer, seen: dict[str, int]) -> None:
    """Write down the padded lengths of the student's and the teacher's prompts."""
    compute_loss = trainer.compute_loss

    def watched(model, inputs, *args, **kwargs):
        completions = inputs["completion_ids"].size(1)
        seen["prompt_tokens"] = inputs["prompt_ids"].size(1)
        if "teacher_input_ids" in inputs:
            seen["teacher_prompt_tokens"] = inputs["teacher_input_ids"].size(1) - completions
        elif "teacher_prompt_ids" in inputs:
            seen["teacher_prompt_tokens"] = inputs["teacher_prompt_ids"].size(1)
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched


def stand_in(task: Task) -> Callable[..., torch.Tensor]:
    """A `generate` that returns random completions of drawn lengths, each call with its own seed."""
    longest, calls = task.setup.completion_tokens, iter(range(10**9))

    def generate(model, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        rows, vocab = input_ids.size(0), model.config.vocab_size
        seed = next(calls)
        lengths = torch.full((rows,), longest) if task.lengths == "longest" else draw_lengths(rows, task, seed)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(FIRST_PLAIN_ID, vocab, (rows, int(lengths.max())), generator=generator)
        places, last = torch.arange(ids.size(1)), lengths.unsqueeze(1) - 1
        ids[places == last], ids[places > last] = special_id(END), special_id(PAD)
        return torch.cat([input_ids, ids.to(input_ids.device)], dim=1)

    return generate


def draw_lengths(rows: int, task: Task, seed: int) -> torch.Tensor:
    """Log-normal lengths of the mean `task.mean`, cut to 1 ... the longest."""
    normal = torch.randn(rows, generator=torch.Generator().manual_seed(seed))
    logarithms = normal * SPREAD + torch.tensor(float(task.mean)).log() - SPREAD**2 / 2
    return logarithms.exp().round().long().clamp(1, task.setup.completion_tokens)


def special_id(token: str) -> int:
    """Its id in the tokenizer of gpu_models."""
    return (PAD, END).index(token)
